"""The engines of the CPU beside PyTorch: its answers, on any number of threads, honest about memory, ended at once."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.host import has_bfloat16
from drunet_cli.network.cpu_engine import CpuEngine, OnnxEngine, OpenvinoEngine
from drunet_cli.network.engine import Images
from drunet_cli.network.torch_engine import TorchEngine
from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.structure import tensor_shapes
from tests.support import GOLDEN_WEIGHTS, golden_logits
from tests.training.shallow import SHALLOW, stage_blocks

Slices = npt.NDArray[np.uint8]
# As ONNX Runtime 1.32 and OpenVINO 2026.4 say it.
NO_MEMORY: Final = {
    OnnxEngine: ort_errors.RuntimeException("RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 7"),
    OpenvinoEngine: RuntimeError(
        "Exception from src/inference/src/cpp/infer_request.cpp:246:\nCaught exception: Exception from src/plugins/intel_cpu/"
        "src/node.cpp:823:\n[CPU] Convolution node with name 'Conv_118/WithoutBiases' can't alloc\n\n"
    ),
}
OTHER_ERROR: Final = {OnnxEngine: ort_errors.Fail("shapes do not match"), OpenvinoEngine: RuntimeError("shapes do not match")}

# Rounding of large logits through 104 layers: in float32, in which OpenVINO computes too where there is no bfloat16.
ROUNDING: Final = {OnnxEngine: 1e-4, OpenvinoEngine: 0.1 if has_bfloat16() else 1e-4}

both = pytest.mark.parametrize("kind", [OnnxEngine, OpenvinoEngine])


@pytest.fixture
def shallow(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """A third of the layers, where answers are compared with the engine's own."""
    with stage_blocks(SHALLOW):
        yield replace(checkpoint, state={name: checkpoint.state[name] for name in tensor_shapes(1)})


def test_logits_equal_keras_on_the_golden_slice(checkpoint: Checkpoint) -> None:
    images, expected = golden_logits()
    ours = OnnxEngine(checkpoint).logits(images)
    # float32 rounding through 104 layers: 2e-6 was seen, 1e-5 is the project's bound.
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize(
    ("kind", "threads", "batch_size", "at_once"),
    [
        (OnnxEngine, 1, None, 1),
        (OnnxEngine, 2, 1, 1),
        (OnnxEngine, 8, None, 4),
        (OnnxEngine, 1, 3, 1),
        (OpenvinoEngine, 1, None, 1),
        (OpenvinoEngine, 8, None, 4),
    ],
)
def test_answers_are_pytorchs_however_the_work_is_shared(
    kind: type[CpuEngine], checkpoint: Checkpoint, slices: Slices, threads: int, batch_size: int | None, at_once: int
) -> None:
    window = np.ascontiguousarray(slices[:, :48])  # not square
    engine = kind(checkpoint, threads=threads, batch_size=batch_size)
    assert engine.batch_size == at_once
    expected = TorchEngine(checkpoint, device=torch.device("cpu")).probabilities(window)
    probabilities = engine.probabilities(window)
    np.testing.assert_allclose(probabilities, expected, atol=ROUNDING[kind])
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 10 * ROUNDING[kind]
    done: list[int] = []
    assert np.array_equal(engine.classes(window, on_progress=done.append)[clear], expected.argmax(axis=-1)[clear])
    assert done == [1] * len(window)
    assert engine.probabilities(window).tobytes() == probabilities.tobytes()


def spoil(engine: CpuEngine, monkeypatch: pytest.MonkeyPatch, *, most: int, error: Exception) -> None:
    """Let the engine raise an error whenever more than so many slices are computed at once."""
    running: list[int] = []
    lock, compute = threading.Lock(), engine.logits

    def logits(images: Images) -> Images:
        with lock:
            running.append(1)
            fits = len(running) <= most
        try:
            time.sleep(0.05)  # so that slices meet
            if not fits:
                raise error
            return compute(images)
        finally:
            with lock:
                running.pop()

    monkeypatch.setattr(engine, "logits", logits)


@pytest.mark.parametrize(("kind", "error"), [*NO_MEMORY.items(), (OnnxEngine, MemoryError())])  # the last is numpy's
def test_fewer_slices_at_once_when_memory_runs_out_and_the_result_is_the_same(
    kind: type[CpuEngine], error: Exception, shallow: Checkpoint, slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    halvings: list[int] = []
    engine = kind(shallow, batch_size=4, threads=4, on_halved=halvings.append)
    classes = engine.classes(slices)
    spoil(engine, monkeypatch, most=1, error=error)
    done: list[int] = []
    assert np.array_equal(engine.classes(slices, on_progress=done.append), classes)
    assert (halvings, engine.batch_size, sum(done)) == ([2, 1], 1, len(slices))


@both
def test_memory_too_small_for_one_slice_is_told_from_any_other_error(
    kind: type[CpuEngine], shallow: Checkpoint, slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = kind(shallow, batch_size=2, threads=2)
    with monkeypatch.context() as patch:
        spoil(engine, patch, most=0, error=NO_MEMORY[kind])
        with pytest.raises(DeviceError, match=r"^device cpu: memory does not suffice for the network and one slice \(.*allo"):
            engine.classes(slices)
    spoil(engine, monkeypatch, most=0, error=OTHER_ERROR[kind])
    with pytest.raises(type(OTHER_ERROR[kind]), match="shapes"):
        engine.classes(slices)


@both
def test_output_that_is_not_finite_is_an_error(kind: type[CpuEngine], shallow: Checkpoint, slices: Slices) -> None:
    state = shallow.state | {"head.bias": np.array([0, np.inf, 0, 0], dtype=np.float32)}
    engine = kind(replace(shallow, state=state))
    with pytest.raises(WeightsError, match="not finite"):
        engine.classes(slices[:1])


# In a process of its own, which would die with SIGSEGV.
INTERRUPTED_LATER: Final = f"""
import signal
from drunet_cli.network.cpu_engine import OpenvinoEngine
from drunet_cli.weights.cache import open_weights
weights = open_weights({str(GOLDEN_WEIGHTS)!r})
engines = [OpenvinoEngine(weights, threads=1) for _ in range(2)]
engines.pop(0)
engines.pop()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_ctrl_c_is_heard_when_the_engines_are_gone() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_LATER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@both
def test_an_interruption_ends_the_slices_in_hand_begins_no_other_and_leaves_the_engine_whole(
    kind: type[CpuEngine], shallow: Checkpoint, slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice is computed over and over until the library gives it up; one that begins too late is told again."""
    engine = kind(shallow, threads=2)
    expected = engine.classes(slices)
    begun: list[int] = []
    in_hand, given_up = threading.Event(), threading.Event()
    compute, interrupt = engine.logits, engine._interrupt

    def logits(images: Images) -> Images:
        begun.append(1)
        if not images.any():
            return compute(images)
        in_hand.set()
        try:
            while not given_up.is_set():  # by another slice: one tells enough
                compute(images)
        finally:
            given_up.set()
        return compute(images)

    def interrupt_again_and_again() -> None:
        for _ in range(6000):
            interrupt()
            if given_up.wait(0.01):
                return
        given_up.set()  # so that this test ends
        pytest.fail("the library computes on")

    def stop(_: int) -> None:
        assert in_hand.wait(60)
        raise KeyboardInterrupt

    many = np.ones((200, 240, 240, 4), dtype=np.uint8)
    many[0] = 0
    with monkeypatch.context() as patch:
        patch.setattr(engine, "logits", logits)
        patch.setattr(engine, "_interrupt", interrupt_again_and_again)
        with pytest.raises(KeyboardInterrupt):
            engine.classes(many, on_progress=stop)
    assert len(begun) <= 3  # the thread of the first may have taken another before it was told
    assert np.array_equal(engine.classes(slices), expected)
