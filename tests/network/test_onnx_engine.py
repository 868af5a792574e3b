"""The ONNX Runtime engine: the answers of PyTorch, on any number of threads, honest about memory; and its graph, as a file."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.network.engine import Head
from drunet_cli.network.onnx_engine import OnnxEngine, build_graph, embed_weights
from drunet_cli.network.torch_engine import TorchEngine
from drunet_cli.weights.checkpoint import Checkpoint, write_checkpoint
from tests.support import golden_logits

Slices = npt.NDArray[np.uint8]
OUT_OF_MEMORY: Final = ort_errors.RuntimeException(
    "RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 7"
)


def test_logits_equal_keras_on_the_golden_slice(checkpoint: Checkpoint) -> None:
    images, expected = golden_logits()
    ours = OnnxEngine(checkpoint).logits(images)
    # float32 rounding through 104 layers: 2e-6 was seen, 1e-5 is the project's bound.
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize(("threads", "batch_size", "at_once"), [(1, None, 1), (2, 1, 1), (8, None, 4), (1, 3, 1)])
def test_answers_are_pytorchs_however_the_work_is_shared(
    checkpoint: Checkpoint, slices: Slices, threads: int, batch_size: int | None, at_once: int
) -> None:
    window = np.ascontiguousarray(slices[:, :80])  # not square
    engine = OnnxEngine(checkpoint, threads=threads, batch_size=batch_size)
    assert engine.batch_size == at_once
    expected = TorchEngine(checkpoint, device=torch.device("cpu")).probabilities(window)
    probabilities = engine.probabilities(window)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)  # float32 rounding of large logits
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-3
    done: list[int] = []
    assert np.array_equal(engine.classes(window, on_done=done.append)[clear], expected.argmax(axis=-1)[clear])
    assert done == [1] * len(window)
    assert engine.probabilities(window).tobytes() == probabilities.tobytes()


class SmallMemory:
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


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError()], ids=["runtime", "numpy"])
def test_fewer_slices_at_once_when_memory_runs_out_and_the_result_is_the_same(
    checkpoint: Checkpoint, slices: Slices, error: Exception
) -> None:
    halvings: list[int] = []
    engine = OnnxEngine(checkpoint, batch_size=4, threads=4, on_halved=halvings.append)
    classes = engine.classes(slices)
    engine._session = SmallMemory(engine._session, 1, error)
    done: list[int] = []
    assert np.array_equal(engine.classes(slices, on_done=done.append), classes)
    assert (halvings, engine.batch_size, sum(done)) == ([2, 1], 1, len(slices))


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OUT_OF_MEMORY, DeviceError, "device cpu: memory does not suffice for the network and one slice"),
        (ort_errors.Fail("shapes do not match"), ort_errors.Fail, "shapes"),
    ],
)
def test_memory_too_small_for_one_slice_is_told_from_any_other_error(
    checkpoint: Checkpoint, slices: Slices, error: Exception, raised: type[Exception], words: str
) -> None:
    engine = OnnxEngine(checkpoint, batch_size=2, threads=2)
    engine._session = SmallMemory(engine._session, 0, error)
    with pytest.raises(raised, match=words):
        engine.classes(slices)


def test_output_that_is_not_finite_is_an_error(checkpoint: Checkpoint, slices: Slices) -> None:
    state = checkpoint.state | {"head.bias": np.array([0, np.inf, 0, 0], dtype=np.float32)}
    engine = OnnxEngine(Checkpoint(metadata=checkpoint.metadata, state=state, sha256=""))
    with pytest.raises(WeightsError, match="not finite"):
        engine.classes(slices[:1])


def test_an_interruption_ends_the_slices_in_hand_and_begins_no_other(checkpoint: Checkpoint) -> None:
    class Interrupted(BaseException):
        pass

    class Endless:
        """A session whose run of the blank slice ends, and whose others go on until they are told to stop."""

        def __init__(self, session: Any) -> None:
            self._session = session
            self._lock, self._in_hand = threading.Lock(), threading.Event()
            self.n_runs, self.stopped = 0, threading.Event()

        def run(self, names: None, inputs: dict[str, npt.NDArray[np.float32]], how: Any) -> Any:
            with self._lock:
                self.n_runs += 1
            if not inputs["slices"].any():
                assert self._in_hand.wait(60)
                return self._session.run(names, inputs, how)
            self._in_hand.set()
            for _ in range(6000):
                if how.terminate:
                    self.stopped.set()
                    break
                time.sleep(0.01)
            raise ort_errors.Fail("Exiting due to terminate flag being set to true.")

    def stop(_: int) -> None:
        raise Interrupted

    engine = OnnxEngine(checkpoint, threads=2)
    engine._session = session = Endless(engine._session)
    many = np.ones((200, 48, 48, 4), dtype=np.uint8)
    many[0] = 0
    with pytest.raises(Interrupted):
        engine.classes(many, on_done=stop)
    assert session.stopped.is_set()
    assert session.n_runs <= 3  # the thread of the first may have taken another before it was told


def test_the_engine_imports_no_torch(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "w.safetensors", checkpoint.state, checkpoint.metadata, overwrite=False)
    program = """
import sys
from pathlib import Path
import numpy as np
from drunet_cli.network.engine import EngineName, Precision, open_engine
from drunet_cli.weights.checkpoint import read_checkpoint
opened = open_engine(EngineName.ONNXRUNTIME, read_checkpoint(Path(sys.argv[1])), device="cpu", precision=Precision.FLOAT32,
                     batch_size=None, threads=1, on_warning=print)
opened.classes(np.zeros((1, 48, 48, 4), np.uint8))
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "w.safetensors")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_graph_is_valid_onnx_with_named_ends_free_sizes_and_what_its_user_must_know(checkpoint: Checkpoint) -> None:
    model = embed_weights(build_graph(checkpoint, head=Head.SOFTMAX))
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"slices": ["batch", 4, "x", "y"], "probabilities": ["batch", 4, "x", "y"]}
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["channels"]) == ["flair", "t1ce", "t1", "t2"]
    assert json.loads(facts["classes"]) == ["BACKGROUND", "NCR", "ED", "ET"]
    assert (facts["bn_epsilon"], facts["base_width"], facts["sha256"]) == ("0.001", "1", checkpoint.sha256)
    assert "truncated to uint8" in facts["normalisation"]
