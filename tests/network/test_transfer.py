"""Batches on their way: what a device does beside the host, played on the CPU by one that shows its answers late."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from drunet_cli.errors import DeviceError, LostDeviceError
from drunet_cli.network.engine import Precision
from drunet_cli.network.torch_engine import Arrival, TorchEngine, Transfer, build_model, fold_norms
from drunet_cli.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")
N = 5  # golden slices


class _LateArrival(Arrival):
    """Memory that holds nothing of use before somebody has waited."""

    def __init__(self, tensors: Sequence[Tensor], events: list[str], fault: str = "") -> None:
        super().__init__([torch.full_like(tensor, 1) for tensor in tensors])
        self._answers, self._events, self._fault = tensors, events, fault

    @torch.inference_mode()
    def wait(self) -> tuple[npt.NDArray[Any], ...]:
        self._events.append("wait")
        if self._fault:
            raise RuntimeError(self._fault)
        for target, tensor in zip(self._tensors, self._answers, strict=True):
            target.copy_(tensor)
        return super().wait()


class _LateTransfer(Transfer):
    def __init__(self, events: list[str], fault: str = "") -> None:
        super().__init__(CPU)
        self.ahead = 1
        self._events, self._fault = events, fault

    def to_host(self, *tensors: Tensor) -> Arrival:
        self._events.append(f"send {len(tensors[0])}")
        return _LateArrival(tensors, self._events, self._fault)


def late(engine: TorchEngine, fault: str = "") -> list[str]:
    """Make an engine's answers late; return what will happen, in order."""
    events: list[str] = []
    engine._transfer = _LateTransfer(events, fault)
    return events


def test_a_batch_is_begun_before_the_last_is_waited_for_and_the_answers_are_the_same(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]
) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=2)
    classes, probabilities = engine.classes(slices), engine.probabilities(slices)
    events = late(engine)
    assert np.array_equal(engine.classes(slices, on_done=lambda n: events.append(f"done {n}")), classes)
    assert events == ["send 2", "send 2", "wait", "done 2", "send 1", "wait", "done 2", "wait", "done 1"]
    assert np.array_equal(engine.probabilities(slices), probabilities)


def test_on_the_cpu_every_batch_is_waited_for_at_once(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=2)
    events = late(engine)
    engine._transfer.ahead = Transfer(CPU).ahead
    engine.classes(slices)
    assert events == ["send 2", "wait", "send 2", "wait", "send 1", "wait"]


def test_dropout_draws_of_each_slices_seed_with_batches_on_their_way(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]
) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=2, dropout=0.2)
    one_by_one = [engine.probabilities(slices[n : n + 1], dropout_seeds=[n])[0] for n in range(N)]
    late(engine)
    together = engine.probabilities(slices, dropout_seeds=range(N))
    np.testing.assert_allclose(together, np.stack(one_by_one), atol=1e-5)  # float32 rounding, by batch size


def test_what_is_on_its_way_is_taken_before_a_batch_that_did_not_fit_is_halved(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]
) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=2)
    expected = engine.classes(slices)
    events = late(engine)
    model, fits = engine._model, [True, False, True, True, True, True]

    def compute(images: Tensor) -> Tensor:
        if not fits.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.as_tensor(model(images))

    engine._model = compute
    engine._on_halved = lambda batch_size: events.append(f"halved to {batch_size}")
    assert np.array_equal(engine.classes(slices), expected)
    assert events[:4] == ["send 2", "wait", "halved to 1", "send 1"]
    assert engine.batch_size == 1


def test_an_overflow_that_shows_late_is_an_error_too(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    state = checkpoint.state | {"head.weight": checkpoint.state["head.weight"] * np.float32(1e6)}
    huge = Checkpoint(metadata=checkpoint.metadata, state=state, sha256="")
    engine = TorchEngine(huge, device=CPU, precision=Precision.FLOAT16, batch_size=1)
    done: list[int] = []
    late(engine)
    with pytest.raises(DeviceError, match="--precision float32"):
        engine.classes(slices, on_done=done.append)
    assert not done


def test_a_fault_that_shows_late_is_the_devices(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=N)
    late(engine, fault="CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.classes(slices)
    forward = engine._forward

    def lost(batch: npt.NDArray[np.uint8], head: Any) -> Arrival:
        arrival = forward(batch, head)
        engine._device = torch.device("cuda:0")  # only for what comes now
        return arrival

    engine._forward = lost  # type: ignore[method-assign]
    with pytest.raises(LostDeviceError, match="illegal memory access"):
        engine.classes(slices)


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT16])
def test_weights_held_in_half_precision_answer_as_under_autocast(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8], precision: Precision
) -> None:
    engine = TorchEngine(checkpoint, device=CPU, precision=precision, batch_size=N)
    model = build_model(checkpoint)
    fold_norms(model)
    dtype = getattr(torch, precision)
    assert {parameter.dtype for name, parameter in engine._model.named_parameters() if "conv" in name} == {dtype}
    images = torch.from_numpy(slices).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        expected = model(images.float() / 255).float().softmax(dim=1).permute(0, 2, 3, 1)
    assert np.array_equal(engine.probabilities(slices), expected.numpy())
