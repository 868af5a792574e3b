"""The PyTorch engine: right at any batch size, honest about devices and memory."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.network.engine import Precision
from drunet_cli.network.torch_engine import TorchEngine, build_model, resolve_device
from drunet_cli.weights.checkpoint import Checkpoint
from tests.support import GOLDEN, GOLDEN_WEIGHTS

CPU = torch.device("cpu")


def test_classes_are_those_that_keras_finds_most_probable(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    keras = np.load(GOLDEN / "logits.npz")
    index, logits = int(keras["slice_index"]), keras["logits"][0]
    ours = TorchEngine(checkpoint, device=CPU).classes(slices[index : index + 1])[0]
    best = np.sort(logits, axis=-1)
    clear = best[..., -1] - best[..., -2] >= 1e-3  # below that, float32 rounding may decide
    assert np.array_equal(ours[clear], logits.argmax(axis=-1)[clear])


def test_probabilities_are_the_softmax_of_which_classes_are_the_argmax(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]
) -> None:
    engine = TorchEngine(checkpoint, device=CPU)
    probabilities = engine.probabilities(slices)
    assert probabilities.shape == (*slices.shape[:3], 4)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)  # float32 sum of four
    assert np.array_equal(probabilities.argmax(axis=-1), engine.classes(slices))


def test_the_same_slices_give_the_same_bytes(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    first, second = (TorchEngine(checkpoint, device=CPU).probabilities(slices) for _ in range(2))
    assert first.tobytes() == second.tobytes()


class _SmallMemory(torch.nn.Module):
    """A network on a device that holds only so many slices."""

    def __init__(self, model: torch.nn.Module, most: int, message: str) -> None:
        super().__init__()
        self.model, self.most, self.message = model, most, message
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError(self.message) if "CUDA" in self.message else RuntimeError(self.message)
        return torch.as_tensor(self.model(x))


@pytest.mark.parametrize("message", ["CUDA out of memory.", "DefaultCPUAllocator: can't allocate memory: you tried ..."])
def test_the_batch_is_halved_until_it_fits_and_the_result_is_the_same(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8], message: str
) -> None:
    halvings: list[int] = []
    engine = TorchEngine(checkpoint, device=CPU, batch_size=5, on_halved=halvings.append)
    expected = engine.classes(slices)
    small = _SmallMemory(engine._model, 1, message)
    engine._model = small
    assert np.array_equal(engine.classes(slices), expected)
    assert halvings == [2, 1]
    assert small.sizes == [5, 2, 1, 1, 1, 1, 1]
    assert engine.batch_size == 1


def test_memory_too_small_for_one_slice_is_a_device_error(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=2)
    engine._model = _SmallMemory(engine._model, 0, "CUDA out of memory.\nTried to allocate")
    with pytest.raises(DeviceError, match=r"memory does not suffice .* one slice \(CUDA out of memory\.\)"):
        engine.classes(slices)


def test_another_runtime_error_is_not_taken_for_lack_of_memory(checkpoint: Checkpoint, slices: npt.NDArray[np.uint8]) -> None:
    engine = TorchEngine(checkpoint, device=CPU)
    engine._model = _SmallMemory(engine._model, 0, "mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        engine.classes(slices)


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT16])
def test_half_precision_agrees_where_the_decision_is_clear(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8], precision: Precision
) -> None:
    exact = np.sort(TorchEngine(checkpoint, device=CPU).probabilities(slices), axis=-1)
    clear = exact[..., -1] - exact[..., -2] > 0.1
    assert clear.mean() > 0.2
    classes = TorchEngine(checkpoint, device=CPU).classes(slices)
    half = TorchEngine(checkpoint, device=CPU, precision=precision).classes(slices)
    assert (half[clear] == classes[clear]).mean() > 0.999


def test_auto_precision_is_float32(checkpoint: Checkpoint) -> None:
    assert TorchEngine(checkpoint, device=CPU).precision is Precision.FLOAT32


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_named_gpu_that_is_absent_is_an_error(name: str) -> None:
    with pytest.raises(DeviceError, match=f"device {name}: no usable CUDA GPU: .*; use --device cpu"):
        resolve_device(name)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_that_is_absent_is_an_error() -> None:
    with pytest.raises(DeviceError, match="device mps"):
        resolve_device("mps")


def test_a_gpu_index_beyond_the_last_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cuda") == resolve_device("auto") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match=r"cuda:2: absent; this machine shows 2 CUDA device"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("head.bias"), r"head\.bias is missing"),
        (lambda state: state.update({"tail.bias": state["head.bias"]}), r"tail\.bias is left over"),
        (lambda state: state.update({"head.bias": np.zeros(5, dtype=np.float32)}), r"head\.bias has shape \(5,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(checkpoint: Checkpoint, change: object, complaint: str) -> None:
    state = dict(checkpoint.state)
    change(state)  # type: ignore[operator]
    with pytest.raises(WeightsError, match=complaint):
        build_model(Checkpoint(metadata=checkpoint.metadata, state=state, sha256=""))


def test_threads_are_those_that_were_asked_for(checkpoint: Checkpoint) -> None:
    before = torch.get_num_threads()
    try:
        assert TorchEngine(checkpoint, device=CPU, threads=1).threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_weights_by_file_say_what_they_are(checkpoint: Checkpoint) -> None:
    assert checkpoint.metadata.name == Path(GOLDEN_WEIGHTS).stem
    assert checkpoint.metadata.bn_epsilon == 1e-3


@pytest.mark.parametrize(
    ("precision", "error", "remedy"),
    [(Precision.FLOAT16, DeviceError, "--precision float32"), (Precision.FLOAT32, WeightsError, "weights are damaged")],
)
def test_an_overflow_is_an_error_and_no_empty_result(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8], precision: Precision, error: type[Exception], remedy: str
) -> None:
    huge = 1e6 if precision is Precision.FLOAT16 else 1e38
    state = checkpoint.state | {"head.weight": checkpoint.state["head.weight"] * np.float32(huge)}
    engine = TorchEngine(Checkpoint(metadata=checkpoint.metadata, state=state, sha256=""), device=CPU, precision=precision)
    with pytest.raises(error, match=remedy):
        engine.classes(slices)


@pytest.mark.parametrize(
    "message",
    [
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_library_that_finds_no_memory_halves_the_batch_too(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8], message: str
) -> None:
    engine = TorchEngine(checkpoint, device=CPU, batch_size=4)
    expected = engine.classes(slices)
    small = _SmallMemory(engine._model, 2, message)
    small.message = message.replace("CUDA", "cuda")  # raised as a plain RuntimeError, as these libraries do
    engine._model = small
    assert np.array_equal(engine.classes(slices), expected)
    assert engine.batch_size == 2


def test_auto_says_why_it_passes_over_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver_too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old\nmore", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", driver_too_old)
    told: list[str] = []
    assert resolve_device("auto", on_warning=told.append) == torch.device("cpu")
    assert told == ["computing on the CPU: CUDA initialization: The NVIDIA driver on your system is too old"]
    with pytest.raises(DeviceError, match="driver on your system is too old"):
        resolve_device("cuda")
