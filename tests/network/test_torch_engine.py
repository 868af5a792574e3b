"""The PyTorch engine: right at any batch size, honest about devices and memory, on a GPU where this machine has one."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from drunet_cli.errors import DeviceError, LostDeviceError, WeightsError
from drunet_cli.network.engine import Precision
from drunet_cli.network.torch_engine import (
    Arrival,
    SliceDropout,
    TorchEngine,
    Transfer,
    build_model,
    exact_arithmetic,
    fold_norms,
    resolve_device,
)
from drunet_cli.weights.checkpoint import Checkpoint
from tests.network.test_model import random_checkpoint
from tests.support import golden_logits

Slices = npt.NDArray[np.uint8]
CPU: Final = torch.device("cpu")
CUDA: Final = torch.device("cuda:0")
N: Final = 5  # golden slices
ROUNDING: Final = 1e-4  # of float32 in probabilities, which differs between CPUs
HALVES: Final = [Precision.BFLOAT16, Precision.FLOAT16]
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def test_classes_are_those_that_keras_finds_most_probable(checkpoint: Checkpoint) -> None:
    images, logits = golden_logits()
    ours = TorchEngine(checkpoint, device=CPU).classes(np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1))
    best = np.sort(logits, axis=1)
    clear = best[:, -1] - best[:, -2] >= 1e-3  # below that, float32 rounding may decide
    assert np.array_equal(ours[clear], logits.argmax(axis=1)[clear])


def test_classes_are_the_argmax_of_the_probabilities_and_the_same_bytes_each_time(
    checkpoint: Checkpoint, slices: Slices
) -> None:
    engine = TorchEngine(checkpoint, device=CPU)
    probabilities = engine.probabilities(slices)
    assert probabilities.shape == (*slices.shape[:3], 4)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)  # float32 sum of four
    assert np.array_equal(probabilities.argmax(axis=-1), engine.classes(slices))
    assert TorchEngine(checkpoint, device=CPU).probabilities(slices).tobytes() == probabilities.tobytes()


def test_threads_are_those_that_were_asked_for(checkpoint: Checkpoint) -> None:
    before = torch.get_num_threads()
    try:
        assert TorchEngine(checkpoint, device=CPU, threads=1).threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# Memory and faults


class SmallMemory(nn.Module):
    """A network on a device that holds only so many slices."""

    def __init__(self, model: nn.Module, most: int, error: RuntimeError) -> None:
        super().__init__()
        self.model, self.most, self.error = model, most, error
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise self.error
        return torch.as_tensor(self.model(x))


OUT_OF_MEMORY: Final = [
    torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:12])
def test_the_batch_is_halved_until_it_fits_and_the_result_is_the_same(
    checkpoint: Checkpoint, slices: Slices, error: RuntimeError
) -> None:
    halvings: list[int] = []
    engine = TorchEngine(checkpoint, device=CPU, batch_size=5, on_halved=halvings.append)
    expected = engine.classes(slices)
    engine._model = small = SmallMemory(engine._model, 1, error)
    assert np.array_equal(engine.classes(slices), expected)
    assert (halvings, small.sizes, engine.batch_size) == ([2, 1], [5, 2, 1, 1, 1, 1, 1], 1)


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OUT_OF_MEMORY[0], DeviceError, r"memory does not suffice .* one slice \(CUDA out of memory\.\)"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError, "mat1"),
    ],
)
def test_memory_too_small_for_one_slice_is_told_from_any_other_error(
    checkpoint: Checkpoint, slices: Slices, error: RuntimeError, raised: type[Exception], words: str
) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=2)
    engine._model = SmallMemory(engine._model, 0, error)
    with pytest.raises(raised, match=words):
        engine.classes(slices)


def louder(checkpoint: Checkpoint, factor: float) -> Checkpoint:
    state = checkpoint.state | {"head.weight": checkpoint.state["head.weight"] * np.float32(factor)}
    return Checkpoint(metadata=checkpoint.metadata, state=state, sha256="")


@pytest.mark.parametrize(
    ("precision", "factor", "error", "remedy"),
    [
        (Precision.FLOAT16, 1e6, DeviceError, "--precision float32"),
        (Precision.FLOAT32, 1e38, WeightsError, "weights are damaged"),
    ],
)
def test_an_overflow_is_an_error_and_no_empty_result(
    checkpoint: Checkpoint, slices: Slices, precision: Precision, factor: float, error: type[Exception], remedy: str
) -> None:
    engine = TorchEngine(louder(checkpoint, factor), device=CPU, precision=precision, batch_size=1)
    done: list[int] = []
    with pytest.raises(error, match=remedy):
        engine.classes(slices, on_progress=done.append)
    assert not done


# Half precision


def test_auto_precision_is_float32(checkpoint: Checkpoint) -> None:
    assert TorchEngine(checkpoint, device=CPU).precision is Precision.FLOAT32


@pytest.mark.parametrize("precision", HALVES)
def test_weights_held_in_half_precision_answer_as_under_autocast(
    checkpoint: Checkpoint, slices: Slices, precision: Precision
) -> None:
    slices = slices[:1]  # which the CPU takes long for, as it has no arithmetic of half precision
    engine = TorchEngine(checkpoint, device=CPU, precision=precision, batch_size=1)
    model = build_model(checkpoint)
    fold_norms(model)
    dtype = getattr(torch, precision)
    assert {parameter.dtype for name, parameter in engine._model.named_parameters() if "conv" in name} == {dtype}
    images = torch.from_numpy(slices).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        expected = model(images.float() / 255).float().softmax(dim=1).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(engine.probabilities(slices), expected)
    exact = TorchEngine(checkpoint, device=CPU).probabilities(slices)
    best = np.sort(exact, axis=-1)
    clear = best[..., -1] - best[..., -2] > 0.1
    assert clear.mean() > 0.2
    assert (expected.argmax(axis=-1)[clear] == exact.argmax(axis=-1)[clear]).mean() > 0.999


# Devices


@pytest.mark.parametrize(
    ("asked", "n_gpus", "mps", "expected"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 2, False, "cuda:0"),
        ("cuda", 2, False, "cuda:0"),
        ("cuda:1", 2, False, "cuda:1"),
        ("cpu", 2, False, "cpu"),
        ("mps", 0, True, "mps"),
        ("cuda", 0, False, "device cuda: no usable CUDA GPU: .*; use --device cpu"),
        ("cuda:7", 0, False, "device cuda:7: no usable CUDA GPU: .*; use --device cpu"),
        ("cuda:2", 2, False, r"device cuda:2: absent; this machine shows 2 CUDA device\(s\)"),
        ("mps", 0, False, "device mps: this machine, or its PyTorch, has none; use --device cpu"),
    ],
)
def test_a_device_is_the_one_that_was_named_or_an_error(
    monkeypatch: pytest.MonkeyPatch, asked: str, n_gpus: int, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if expected.startswith("device"):
        with pytest.raises(DeviceError, match=expected):
            resolve_device(asked)
    else:
        assert str(resolve_device(asked)) == expected


def test_auto_says_why_it_passes_over_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver_too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old\nmore", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", driver_too_old)
    told: list[str] = []
    assert resolve_device("auto", on_warning=told.append) == CPU
    assert told == ["computing on the CPU: CUDA initialization: The NVIDIA driver on your system is too old"]
    with pytest.raises(DeviceError, match="driver on your system is too old"):
        resolve_device("cuda")


# Samples with dropout on

SEEDS: Final = [3, 14, 15, 92, 65]


def sampling(checkpoint: Checkpoint, rate: float = 0.2, *, batch_size: int | None = None) -> TorchEngine:
    return TorchEngine(checkpoint, device=CPU, dropout=rate, batch_size=batch_size)


def test_a_sample_depends_on_its_seed_and_its_slice_alone(checkpoint: Checkpoint, slices: Slices) -> None:
    together = sampling(checkpoint, batch_size=5).probabilities(slices, dropout_seeds=SEEDS)
    apart = sampling(checkpoint, batch_size=1).probabilities(slices, dropout_seeds=SEEDS)
    np.testing.assert_allclose(apart, together, atol=ROUNDING)
    turned = sampling(checkpoint, batch_size=2).probabilities(slices[::-1].copy(), dropout_seeds=SEEDS[::-1])
    np.testing.assert_allclose(turned[::-1], together, atol=ROUNDING)
    # Other masks change the probabilities by over 10 times as much as rounding.
    other = sampling(checkpoint).probabilities(slices[:1], dropout_seeds=SEEDS[1:2])
    assert np.abs(other - together[:1]).max() > 10 * ROUNDING


def test_without_seeds_or_with_a_rate_of_zero_dropout_is_off(checkpoint: Checkpoint, slices: Slices) -> None:
    plain = TorchEngine(checkpoint, device=CPU).probabilities(slices).tobytes()
    engine = sampling(checkpoint)
    engine.probabilities(slices[:1], dropout_seeds=[1])
    assert engine.probabilities(slices).tobytes() == plain
    assert sampling(checkpoint, rate=0.0).probabilities(slices, dropout_seeds=SEEDS).tobytes() == plain


def test_a_mask_zeroes_its_share_keeps_the_mean_and_is_the_same_in_any_batch() -> None:
    rate = 0.2
    dropout, ones = SliceDropout(rate), torch.ones(2, 50, 40, 40).contiguous(memory_format=torch.channels_last)
    with dropout.sampled([7, 8], CPU):
        together, second_layer = dropout(ones), dropout(ones)
    assert abs(float((together == 0).float().mean()) - rate) < 0.01  # of 160,000 draws
    assert abs(float(together.mean()) - 1) < 0.02
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, second_layer)
    for index, seed in enumerate((7, 8)):
        with dropout.sampled([seed], CPU):
            assert torch.equal(dropout(ones[:1])[0], together[index])


# Batches on their way: a GPU that shows its answers late, played on the CPU


class LateArrival(Arrival):
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


class LateTransfer(Transfer):
    def __init__(self, events: list[str], fault: str = "", *, ahead: int = 1) -> None:
        super().__init__(CPU)
        self.ahead = ahead
        self._events, self._fault = events, fault

    def to_host(self, *tensors: Tensor) -> Arrival:
        self._events.append(f"send {len(tensors[0])}")
        return LateArrival(tensors, self._events, self._fault)


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (1, ["send 2", "send 2", "wait", "done 2", "send 1", "wait", "done 2", "wait", "done 1"]),
        (Transfer(CPU).ahead, ["send 2", "wait", "done 2", "send 2", "wait", "done 2", "send 1", "wait", "done 1"]),
    ],
)
def test_a_batch_is_begun_before_the_last_is_waited_for_on_a_gpu_alone(
    checkpoint: Checkpoint, slices: Slices, ahead: int, expected: list[str]
) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=2, dropout=0.2)
    classes, samples = engine.classes(slices), engine.probabilities(slices, dropout_seeds=SEEDS)
    events: list[str] = []
    engine._transfer = LateTransfer(events, ahead=ahead)
    assert np.array_equal(engine.classes(slices, on_progress=lambda n: events.append(f"done {n}")), classes)
    assert events == expected
    assert np.array_equal(engine.probabilities(slices, dropout_seeds=SEEDS), samples)


def test_batches_on_their_way_are_taken_before_one_that_did_not_fit_is_halved(checkpoint: Checkpoint, slices: Slices) -> None:
    events: list[str] = []
    engine = TorchEngine(checkpoint, device=CPU, batch_size=2, on_halved=lambda size: events.append(f"halved to {size}"))
    expected = engine.classes(slices)
    engine._transfer = LateTransfer(events)
    model, fits = engine._model, [True, False, True, True, True, True]

    def compute(images: Tensor) -> Tensor:
        if not fits.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.as_tensor(model(images))

    engine._model = compute
    assert np.array_equal(engine.classes(slices), expected)
    assert events[:4] == ["send 2", "wait", "halved to 1", "send 1"]


def test_a_fault_that_shows_late_is_the_devices(checkpoint: Checkpoint, slices: Slices) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=N)
    engine._transfer = LateTransfer([], "CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.classes(slices)
    forward = engine._forward

    def lose_the_gpu(batch: Slices, head: Any) -> Arrival:
        arrival = forward(batch, head)
        engine._device = torch.device("cuda:0")  # only from here on
        return arrival

    engine._forward = lose_the_gpu  # type: ignore[method-assign]
    with pytest.raises(LostDeviceError, match="illegal memory access"):
        engine.classes(slices)


# The switches of PyTorch: as drunet needs them while it computes, and then as they were

Switches = tuple[object, bool, bool, bool]


def switches() -> Switches:
    """TF32 in convolutions, cuDNN's choice by the clock, and whether only deterministic algorithms may run, or warn."""
    cudnn = torch.backends.cudnn
    tf32 = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32  # the first since torch 2.9
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), warns


@pytest.fixture
def switches_before() -> Iterator[Switches]:
    """The switches of a program that has settings of its own."""
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield switches()
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_switches_of_a_program_that_calls_are_put_back(
    deterministic: bool, switches_before: Switches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with suppress(KeyError), exact_arithmetic(deterministic=deterministic):
        assert switches()[0] in ("ieee", False)
        assert switches()[1:] == ((False, True, False) if deterministic else switches_before[1:])
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic
        raise KeyError
    assert switches() == switches_before
    assert switches_before[0] not in ("ieee", False)


def test_the_switches_stay_until_the_last_of_several_has_left(switches_before: Switches) -> None:
    first, second = exact_arithmetic(), exact_arithmetic(deterministic=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert switches()[0] in ("ieee", False)
    assert switches()[1:] == (False, True, False)
    with exact_arithmetic():  # content with any algorithm, which changes nothing for the other
        assert torch.are_deterministic_algorithms_enabled()
    second.__exit__(None, None, None)
    assert switches() == switches_before


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_engine_computes_in_exact_arithmetic_and_only_while_it_computes(
    checkpoint: Checkpoint, slices: Slices, deterministic: bool
) -> None:
    before, seen = switches(), list[Switches]()
    engine = TorchEngine(checkpoint, device=CPU, deterministic=deterministic)
    engine._model.register_forward_hook(lambda *_: seen.append(switches()))
    engine.classes(slices[:1])
    assert {(tf32 in ("ieee", False), certain) for tf32, _, certain, _ in seen} == {(True, deterministic)}
    assert switches() == before


# A real GPU


@on_a_gpu
def test_labels_of_a_gpu_are_those_of_the_cpu_where_the_decision_is_clear(checkpoint: Checkpoint, slices: Slices) -> None:
    expected = TorchEngine(checkpoint, device=CPU).probabilities(slices)
    engine = TorchEngine(checkpoint, device=CUDA, batch_size=2)
    best = np.sort(expected, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-3  # nearer ones may fall either way by float32 rounding
    assert np.array_equal(engine.classes(slices)[clear], expected.argmax(axis=-1)[clear])
    np.testing.assert_allclose(engine.probabilities(slices), expected, atol=ROUNDING)


@on_a_gpu
@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.FLOAT16])
def test_deterministic_computing_gives_equal_bytes(checkpoint: Checkpoint, slices: Slices, precision: Precision) -> None:
    engines = [TorchEngine(checkpoint, device=CUDA, precision=precision, deterministic=True, batch_size=2) for _ in range(2)]
    assert engines[0].probabilities(slices).tobytes() == engines[1].probabilities(slices).tobytes()


@on_a_gpu
def test_batches_that_a_small_card_cannot_hold_are_halved_and_end_in_the_same_labels(slices: Slices) -> None:
    checkpoint = random_checkpoint(16)
    many = np.concatenate([slices] * 31)  # 155, as a BraTS case has
    expected = TorchEngine(checkpoint, device=CUDA, batch_size=5).classes(slices)
    halvings: list[int] = []
    torch.cuda.empty_cache()
    # The memory of an 8 GB card that CUDA's own context leaves.
    share = min(1.0, 7e9 / torch.cuda.get_device_properties(CUDA).total_memory)
    torch.cuda.set_per_process_memory_fraction(share, CUDA)
    try:
        found = TorchEngine(checkpoint, device=CUDA, batch_size=len(many), on_halved=halvings.append).classes(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    assert halvings
    agreement = np.mean(found.reshape(31, *expected.shape) == expected)
    assert agreement > 0.999  # random weights, so that many voxels lie nearly between two classes
