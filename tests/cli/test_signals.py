"""A signal whose exception was swallowed is raised again."""

import contextlib
import signal
from collections.abc import Iterator

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
