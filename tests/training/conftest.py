"""Cases to train on, and runs that several tests look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drunet_cli.training import loop
from tests.training.shallow import SHALLOW, stage_blocks
from tests.training.small_runs import Run, run_training, small_settings, stop_training, write_small_cases


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """Train a network of a third of the depth."""
    with stage_blocks(SHALLOW):
        yield


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small cases that no test changes."""
    return write_small_cases(tmp_path_factory.mktemp("small") / "cases")


@pytest.fixture(scope="module")
def whole(shallow: None, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training that nobody disturbs, of two epochs of two steps, with everything that it writes."""
    return run_training(small_settings(tmp_path_factory.mktemp("whole") / "run", cases))


@pytest.fixture(scope="module")
def half(shallow: None, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training that was stopped in its second epoch."""
    return stop_training(small_settings(tmp_path_factory.mktemp("half") / "run", cases), 3)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no picture, which takes as long as three steps."""
    monkeypatch.setattr(loop, "draw_curves", lambda *_: False)


@pytest.fixture(autouse=True)
def _one_thread_and_torch_as_it_was() -> Iterator[None]:
    """Compute with one thread: the networks are tiny, and tests run beside one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
