"""Ctrl-C and SIGTERM as exceptions, held back where work ends at a place of its own choice."""

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from drunet_cli.errors import Terminated
from drunet_cli.signals import hold_signals, signals_raised

EXCEPTIONS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
both = pytest.mark.parametrize(("number", "expected"), EXCEPTIONS, ids=["SIGINT", "SIGTERM"])


@pytest.fixture(autouse=True)
def _raised() -> Iterator[None]:
    with signals_raised():
        yield


@both
def test_signal_is_raised_where_the_program_is(number: int, expected: type[BaseException]) -> None:
    with pytest.raises(expected):
        signal.raise_signal(number)


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


@pytest.mark.parametrize("block", [signals_raised, hold_signals])
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
