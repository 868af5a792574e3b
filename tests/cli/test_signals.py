"""A signal whose exception was swallowed is raised again."""

import contextlib
import importlib
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from drunet_cli.cli import signals
from drunet_cli.errors import Terminated


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.signal(number, signals.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.forget()
    yield
    signals.forget()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_swallowed_signal_is_raised_at_the_next_step(number: int, expected: type[BaseException]) -> None:
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)
    with pytest.raises(expected):
        signals.raise_lost()


def test_without_a_signal_nothing_is_raised() -> None:
    signals.raise_lost()


class Subject:
    """Something that a weak reference can point at."""


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_within_a_callback_of_the_interpreter_is_raised_later_and_prints_nothing(
    number: int, expected: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    subject = Subject()
    reference = weakref.ref(subject, lambda _: signal.raise_signal(number))
    with signals.lost_in_silence():
        del subject
    assert (reference(), capsys.readouterr().err) == (None, "")
    with pytest.raises(expected):
        signals.raise_lost()


def test_another_exception_within_a_callback_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[type[BaseException]] = []
    monkeypatch.setattr("sys.unraisablehook", lambda report: reports.append(report.exc_type))
    subject = Subject()
    reference = weakref.ref(subject, lambda _: int(""))
    with signals.lost_in_silence():
        del subject
    assert (reference(), reports) == (None, [ValueError])


MODULE = """
import signal, time
signal.raise_signal({number})
time.sleep(0.2)  # longer than a signal is postponed for
complete = True
"""


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_within_an_import_is_raised_when_the_module_is_whole(
    number: int, expected: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_module.py").write_text(MODULE.format(number=int(number)))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(expected):  # noqa: PT012  # in whichever of the two lines it is
        importlib.import_module("slow_module")
        time.sleep(5)
    assert sys.modules.pop("slow_module").complete


def test_a_signal_that_was_postponed_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_module.py").write_text(MODULE.format(number=int(signal.SIGINT)))
    monkeypatch.syspath_prepend(tmp_path)
    with signals.stops_deferred() as should_stop:  # a second Ctrl-C would be raised here
        importlib.import_module("slow_module")
        time.sleep(0.2)
        assert should_stop()
    del sys.modules["slow_module"]
