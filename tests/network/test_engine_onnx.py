"""The ONNX Runtime engine: the answers of PyTorch, on any number of threads, honest about memory."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.network.onnx_engine import INPUT, OnnxEngine
from drunet_cli.network.torch_engine import TorchEngine
from drunet_cli.weights.checkpoint import Checkpoint, write_checkpoint

OUT_OF_MEMORY = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 7"


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return TorchEngine(checkpoint, device=torch.device("cpu")).probabilities(slices)


@pytest.mark.parametrize(("threads", "batch_size"), [(1, None), (2, None), (2, 1), (8, None), (1, 3)])
def test_answers_are_pytorchs_however_the_work_is_shared(
    checkpoint: Checkpoint,
    slices: npt.NDArray[np.uint8],
    expected: npt.NDArray[np.float32],
    threads: int,
    batch_size: int | None,
) -> None:
    engine = OnnxEngine(checkpoint, threads=threads, batch_size=batch_size)
    np.testing.assert_allclose(engine.probabilities(slices), expected, atol=1e-4)  # float32 rounding of large logits
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-3
    assert np.array_equal(engine.classes(slices)[clear], expected.argmax(axis=-1)[clear])


@pytest.mark.parametrize(
    ("threads", "batch_size", "at_once"),
    [(1, None, 1), (2, None, 2), (4, None, 4), (16, None, 4), (2, 1, 1), (2, 3, 2), (1, 8, 1)],
)
def test_each_slice_has_a_thread_of_its_own_up_to_four(
    checkpoint: Checkpoint, threads: int, batch_size: int | None, at_once: int
) -> None:
    assert OnnxEngine(checkpoint, threads=threads, batch_size=batch_size).batch_size == at_once


def test_the_same_slices_give_the_same_bytes(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    first, second = (OnnxEngine(checkpoint, threads=2).probabilities(slices) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_windows_of_any_legal_size_are_taken(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    window = np.ascontiguousarray(slices[:, 32:144, 64:240])
    torchs = TorchEngine(checkpoint, device=torch.device("cpu")).probabilities(window)
    np.testing.assert_allclose(OnnxEngine(checkpoint).probabilities(window), torchs, atol=1e-4)


def test_every_slice_is_told_when_it_is_done(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    told: list[int] = []
    OnnxEngine(checkpoint, threads=2).classes(slices, on_done=told.append)
    assert told == [1] * len(slices)


class _SmallMemory:
    """A session on a machine whose memory suffices for so many runs at once."""

    def __init__(self, session: Any, most: int, error: Exception) -> None:
        self._session, self._most, self._error = session, most, error
        self._running = 0
        self._lock = threading.Lock()

    def run(self, names: None, inputs: dict[str, npt.NDArray[np.float32]], how: Any) -> Any:
        with self._lock:
            self._running += 1
            fits = self._running <= self._most
        try:
            time.sleep(0.05)  # so that runs meet
            if not fits:
                raise self._error
            return self._session.run(names, inputs, how)
        finally:
            with self._lock:
                self._running -= 1


@pytest.mark.parametrize("error", [ort_errors.RuntimeException(OUT_OF_MEMORY), MemoryError()], ids=["runtime", "numpy"])
def test_fewer_slices_at_once_when_memory_runs_out_and_the_result_is_the_same(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8], error: Exception
) -> None:
    halvings: list[int] = []
    engine = OnnxEngine(checkpoint, batch_size=4, threads=4, on_halved=halvings.append)
    classes = engine.classes(slices)
    engine._session = _SmallMemory(engine._session, 1, error)
    told: list[int] = []
    assert np.array_equal(engine.classes(slices, on_done=told.append), classes)
    assert (halvings, engine.batch_size, sum(told)) == ([2, 1], 1, len(slices))


def test_memory_too_small_for_one_slice_is_a_device_error(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine = OnnxEngine(checkpoint, batch_size=2, threads=2)
    engine._session = _SmallMemory(engine._session, 0, ort_errors.RuntimeException(OUT_OF_MEMORY))
    with pytest.raises(DeviceError, match="device cpu: memory does not suffice for the network and one slice"):
        engine.classes(slices)


def test_another_error_is_not_taken_for_lack_of_memory(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine = OnnxEngine(checkpoint)
    engine._session = _SmallMemory(engine._session, 0, ort_errors.Fail("shapes do not match"))
    with pytest.raises(ort_errors.Fail, match="shapes"):
        engine.classes(slices)


def test_an_interruption_ends_the_work(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    class Interrupted(BaseException):
        pass

    def stop(_: int) -> None:
        raise Interrupted

    engine = OnnxEngine(checkpoint, threads=1)
    many = np.repeat(slices, 40, axis=0)
    begin = time.perf_counter()
    engine.classes(slices)
    whole = time.perf_counter() - begin
    begin = time.perf_counter()
    with pytest.raises(Interrupted):
        engine.classes(many, on_done=stop)
    assert time.perf_counter() - begin < 40 * whole / 4


def test_an_interruption_ends_the_slices_in_hand(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    class Interrupted(BaseException):
        pass

    class Endless:
        """A session that computes slice 0 once another is in hand, which ends only when it is told to."""

        def __init__(self, session: Any) -> None:
            self._session, self._in_hand, self.told = session, threading.Event(), threading.Event()

        def run(self, names: None, inputs: dict[str, npt.NDArray[np.float32]], how: Any) -> Any:
            if np.array_equal(inputs[INPUT][0].transpose(1, 2, 0), slices[0] / np.float32(255)):
                assert self._in_hand.wait(60)
                return self._session.run(names, inputs, how)
            self._in_hand.set()
            for _ in range(6000):
                if how.terminate:
                    self.told.set()
                    break
                time.sleep(0.01)
            raise ort_errors.Fail("Exiting due to terminate flag being set to true.")

    def stop(_: int) -> None:
        raise Interrupted

    engine = OnnxEngine(checkpoint, threads=2)
    engine._session = session = Endless(engine._session)
    with pytest.raises(Interrupted):
        engine.classes(slices, on_done=stop)
    assert session.told.is_set()


def test_output_that_is_not_finite_is_an_error(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    state = checkpoint.state | {"head.bias": np.array([0, np.inf, 0, 0], dtype=np.float32)}
    engine = OnnxEngine(Checkpoint(metadata=checkpoint.metadata, state=state, sha256=""))
    with pytest.raises(WeightsError, match="not finite"):
        engine.classes(slices[:1])


def test_engine_imports_no_torch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "w.safetensors", checkpoint.state, checkpoint.metadata, overwrite=False)
    program = """
import sys
from pathlib import Path
import numpy as np
from drunet_cli.weights.checkpoint import read_checkpoint
from drunet_cli.network.onnx_engine import OnnxEngine
OnnxEngine(read_checkpoint(Path(sys.argv[1]))).classes(np.zeros((1, 48, 48, 4), np.uint8))
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "w.safetensors"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
