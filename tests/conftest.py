"""Fixtures that every room shares: an environment of one's own, and the command line."""

import functools
import gc
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from drunet_cli.host import disable_onnxruntime_telemetry, limit_openmp_spinning
from drunet_cli.io.inputs import file_sha256
from drunet_cli.segmentation import pipeline
from drunet_cli.weights import keras
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint, State
from drunet_cli.weights.registry import DEFAULT, ENTRIES, Entry
from tests.forks import Forks
from tests.support import GOLDEN, GOLDEN_WEIGHTS, Drunet

limit_openmp_spinning()  # here, before a test imports torch: beside other work the tests would take twice as long
disable_onnxruntime_telemetry()  # and before one imports onnxruntime
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # where it is set, each process of a test would compile what it imports

# Their signals and locks are not those of Windows, where nobody has run the tests yet.
collect_ignore = (
    ["cli/test_cohort_interruption.py", "cli/test_convert_interruption.py", "test_processes.py", "training/test_session.py"]
    if sys.platform == "win32"
    else []
)

# The same examples in every run; `--hypothesis-profile default` looks for new ones. No deadline: the machine may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and never among tests and modules, which live to the end: it took a quarter of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heeded() -> None:
    """Also where the tests run in the background of a script, whose commands ignore it, and all that these start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for each test; pytest would list all those before, every time."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(n) for n in itertools.count())


@pytest.fixture(autouse=True)
def _own_environment(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's cache, mirror, proxy or terminal settings."""
    for name in list(os.environ):
        if name.startswith(("DRUNET_", "SLURM_")) or name.lower().endswith("_proxy") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    cache = next(caches)
    cache.mkdir()
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(cache))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # what drunet takes for its CPUs, as the other processes have theirs


@pytest.fixture(autouse=True, scope="session")
def _golden_weights_are_read_once() -> Iterator[None]:
    """In this process: reading the file of Keras takes half a second, with which many tests would begin."""
    read = keras.read_keras_h5
    golden = file_sha256(GOLDEN_WEIGHTS)
    base_width, state = read(GOLDEN_WEIGHTS)

    def read_keras_h5(path: Path) -> tuple[int, State]:
        if path.is_file() and file_sha256(path) == golden:
            return base_width, dict(state)
        return read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras, "read_keras_h5", read_keras_h5)
        yield


@pytest.fixture
def golden_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry takes the golden weights, of base width 1, for the published ones, which no test has."""
    monkeypatch.setitem(cast(dict[str, Entry], ENTRIES), DEFAULT, replace(ENTRIES[DEFAULT], base_width=1))


@pytest.fixture
def label_maps_unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning about label maps: those of the golden weights, whose numbers are random, cannot be right."""
    monkeypatch.setattr(pipeline, "label_map_warnings", lambda _: [])


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes of drunet that begin at once."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    servers = Forks()
    yield servers
    servers.close()


@pytest.fixture
def drunet(forks: Forks, tmp_path: Path) -> Drunet:
    """Run the command line as a process of its own, in tmp_path; gives its code, stdout and stderr."""
    return functools.partial(forks.run, folder=tmp_path)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """The golden weights, of base width 1."""
    return open_weights(str(GOLDEN_WEIGHTS))


@pytest.fixture(scope="module")
def slices() -> npt.NDArray[np.uint8]:
    """[5, 112, 112, 4]: the middle of the golden case's slices, which is a fifth of the work."""
    return np.asarray(np.load(GOLDEN / "slices.npz")["slices"])[:, 64:176, 64:176]
