"""What every test of the command line has."""

import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from onnxruntime import RunOptions

from drunet_cli.network import cpu_engine
from drunet_cli.phantom import scanner
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint, write_checkpoint
from tests.cli.small_cohort import N_CASES, write_cases
from tests.support import GOLDEN_WEIGHTS


@pytest.fixture(autouse=True)
def _lines_without_time_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drunet_cli.cli.console.log_prefix", lambda _: "")


_LOADED: Final[dict[tuple[object, ...], cpu_engine.OnnxEngine]] = {}


@pytest.fixture(autouse=True, scope="module")
def _networks_are_loaded_once() -> Iterator[None]:
    """For each number of threads, in this process: ONNX Runtime takes a tenth of a second, and many tests begin with it."""
    load = cpu_engine.OnnxEngine._load

    def load_once(engine: cpu_engine.OnnxEngine, checkpoint: Checkpoint) -> None:
        numbers = [zlib.crc32(array.tobytes()) for array in checkpoint.state.values()]
        key = (engine.threads, engine.batch_size, checkpoint.metadata, *numbers)
        if key not in _LOADED:
            load(engine, checkpoint)
            _LOADED[key] = engine
        engine._session, engine._how = _LOADED[key]._session, RunOptions()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_engine.OnnxEngine, "_load", load_once)
        yield


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lie in the folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def golden_safetensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights in drunet's own format, which a process of its own opens ten times as fast."""
    golden, path = open_weights(str(GOLDEN_WEIGHTS)), tmp_path_factory.mktemp("weights") / "weights.safetensors"
    write_checkpoint(path, golden.state, golden.metadata, overwrite=False)
    return path


@pytest.fixture
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic cases [48, 56, 32], made in a tenth of a second."""
    monkeypatch.setattr(scanner, "make_phantom", functools.partial(scanner.make_phantom, shape=(48, 56, 32)))


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small cases that no test changes."""
    return write_cases(tmp_path_factory.mktemp("cohort"), N_CASES)
