"""Ctrl-C and SIGTERM as exceptions, held back where work ends at a place of its own choice."""

import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from drunet_cli.errors import Terminated
from drunet_cli.processes import hold_signals, raise_signals

EXCEPTIONS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
both = pytest.mark.parametrize(("number", "expected"), EXCEPTIONS, ids=["SIGINT", "SIGTERM"])


@pytest.fixture(autouse=True)
def _raised() -> Iterator[None]:
    with raise_signals():
        yield


@both
def test_signal_is_raised_where_the_program_is(number: int, expected: type[BaseException]) -> None:
    with pytest.raises(expected):
        signal.raise_signal(number)


class Finalized:
    """Something that is finalized while a signal comes."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@both
@pytest.mark.parametrize("place", ["finalizer", "callback of a weak reference"])
def test_signal_is_raised_where_python_drops_exceptions(number: int, expected: type[BaseException], place: str) -> None:
    if place == "finalizer":
        dropped: list[object] = [Finalized(number)]
    else:
        dropped = [threading.Thread()]
        reference = weakref.ref(dropped[0], lambda _: signal.raise_signal(number))
        assert reference() is not None
    with pytest.raises(expected):
        drop_and_wait(dropped)


def drop_and_wait(dropped: list[object]) -> None:
    dropped.clear()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        pass


def test_other_exceptions_that_python_drops_are_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    with raise_signals():
        [Finalized(10_000)].clear()  # there is no such signal
    assert told == [OSError]


@both
def test_held_signal_is_told_and_raised_after_the_block(number: int, expected: type[BaseException]) -> None:
    seen: list[bool] = []

    def hold() -> None:
        with hold_signals() as should_stop:
            seen.append(should_stop())
            signal.raise_signal(number)
            seen.append(should_stop())

    with pytest.raises(expected):
        hold()
    assert seen == [False, True]


def test_held_signal_is_raised_also_where_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt), hold_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ValueError


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_only_a_second_ctrl_c_ends_the_block(number: int, raised: bool) -> None:
    reached: list[int] = []
    with pytest.raises((KeyboardInterrupt, Terminated)), hold_signals():  # noqa: PT012
        signal.raise_signal(number)
        signal.raise_signal(number)
        reached.append(number)
    assert bool(reached) is not raised


@pytest.mark.parametrize("block", [raise_signals, hold_signals])
def test_what_was_before_is_there_again_and_an_ignored_signal_stays_ignored(block: Callable[[], Iterator[None]]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminating = signal.getsignal(signal.SIGTERM)
    try:
        with block():  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGTERM) is not terminating
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is terminating
    finally:
        signal.signal(signal.SIGINT, before)


def test_block_in_another_thread_leaves_signals_alone() -> None:
    told: list[bool] = []

    def work() -> None:
        with hold_signals() as should_stop:
            told.append(should_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [False]
