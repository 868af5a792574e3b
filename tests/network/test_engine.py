"""Which engine computes, and that it computes the network of model.py."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import nn
from torch.nn import functional

from drunet_cli.errors import MisuseError
from drunet_cli.host import may_have_gpu, missing_packages
from drunet_cli.network import engine as engine_module
from drunet_cli.network import torch_engine
from drunet_cli.network.engine import (
    Engine,
    EngineName,
    Format,
    Precision,
    changed_network,
    choose_engine,
    fastest_precision,
    open_engine,
)
from drunet_cli.network.export import Variant, export
from drunet_cli.network.torch_engine import TorchEngine
from drunet_cli.weights.checkpoint import Checkpoint

AUTO, TORCH, ONNX, OPENVINO = EngineName.AUTO, EngineName.TORCH, EngineName.ONNXRUNTIME, EngineName.OPENVINO
CPU_ONLY: Final = "2.13.0+cpu"


def opened(checkpoint: Checkpoint, name: EngineName = ONNX) -> Engine:
    precision = Precision.FLOAT32
    return open_engine(name, checkpoint, device="cpu", precision=precision, batch_size=None, threads=1, on_warning=print)


@pytest.mark.parametrize(
    ("build", "gpu", "missing", "asked", "expected"),
    [
        (CPU_ONLY, False, "", (AUTO, "auto", "auto"), ONNX),
        (CPU_ONLY, True, "", (AUTO, "auto", "auto"), ONNX),  # a GPU that this PyTorch cannot use
        ("2.13.0", False, "", (AUTO, "auto", "float32"), ONNX),
        ("2.13.0+cu130", True, "", (AUTO, "auto", "auto"), TORCH),
        ("2.13.0", True, "", (AUTO, "auto", "auto"), TORCH),
        ("2.13.0", True, "", (AUTO, "cpu", "auto"), ONNX),
        ("2.6.0+git6a3d1f9", True, "", (AUTO, "auto", "auto"), TORCH),
        (CPU_ONLY, False, "", (AUTO, "cpu", "bfloat16"), OPENVINO),
        ("2.13.0", False, "", (AUTO, "cuda:1", "auto"), TORCH),
        ("2.13.0", False, "", (AUTO, "mps", "auto"), TORCH),
        (CPU_ONLY, False, "onnx", (AUTO, "cpu", "auto"), TORCH),
        (CPU_ONLY, False, "onnxruntime", (AUTO, "cpu", "auto"), TORCH),
        (CPU_ONLY, False, "onnx", (TORCH, "cpu", "float16"), TORCH),
        (CPU_ONLY, False, "onnxruntime", (ONNX, "auto", "auto"), "onnxruntime not installed; run: pip install onnxruntime"),
        (CPU_ONLY, False, "", (ONNX, "cuda", "auto"), "on the CPU in float32; for others use engine=torch"),
        (CPU_ONLY, False, "", (ONNX, "cpu", "float16"), "on the CPU in float32; for others use engine=torch"),
        (CPU_ONLY, False, "", (OPENVINO, "cpu", "float32"), "on the CPU in bfloat16; for others use engine=torch"),
        (CPU_ONLY, False, "", (OPENVINO, "cpu", "bfloat16"), OPENVINO),
        (CPU_ONLY, False, "openvino", (AUTO, "cpu", "bfloat16"), TORCH),
        ("2.13.0+cu130", True, "", (AUTO, "auto", "bfloat16"), TORCH),
    ],
)
def test_onnx_runtime_and_openvino_compute_on_a_cpu_and_pytorch_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
    build: str,
    gpu: bool,
    missing: str,
    asked: tuple[EngineName, str, str],
    expected: EngineName | str,
) -> None:
    find = util.find_spec
    monkeypatch.setattr(metadata, "version", lambda _: build)
    monkeypatch.setattr(engine_module, "may_have_gpu", lambda: gpu)
    monkeypatch.setattr(engine_module, "has_bfloat16", lambda: True)
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == missing else find(name))
    name, device, precision = asked
    if isinstance(expected, EngineName):
        assert choose_engine(name, device=device, precision=Precision(precision)) is expected
        return
    with pytest.raises(MisuseError) as refused:
        choose_engine(name, device=device, precision=Precision(precision))
    assert expected in str(refused.value)


@pytest.mark.parametrize(("engine", "refused"), [(AUTO, True), (OPENVINO, True), (TORCH, False)])
def test_bfloat16_is_refused_where_it_would_be_emulated_unless_pytorch_is_asked_to(
    engine: EngineName, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "has_bfloat16", lambda: False)
    if not refused:
        assert choose_engine(engine, device="cpu", precision=Precision.BFLOAT16) is TORCH
        return
    with pytest.raises(MisuseError, match=r"precision=bfloat16: this processor \(.*\) has no arithmetic for it"):
        choose_engine(engine, device="cpu", precision=Precision.BFLOAT16)


@pytest.mark.parametrize(
    ("engine", "device", "has", "missing", "expected"),
    [
        (AUTO, "cpu", True, "", "bfloat16"),
        (AUTO, "cpu", False, "", "auto"),
        (AUTO, "cpu", True, "openvino", "auto"),
        (AUTO, "cuda", True, "", "auto"),
        (TORCH, "cpu", True, "", "auto"),
        (ONNX, "cpu", True, "", "auto"),
    ],
)
def test_the_fastest_precision_is_bfloat16_where_openvino_may_take_it(
    engine: EngineName, device: str, has: bool, missing: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = util.find_spec
    monkeypatch.setattr(engine_module, "has_bfloat16", lambda: has)
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == missing else find(name))
    assert fastest_precision(engine, device=device) == expected


def test_samples_with_dropout_are_pytorchs() -> None:
    assert choose_engine(AUTO, device="cpu", precision=Precision.AUTO, sampling=True) is TORCH
    with pytest.raises(MisuseError, match="mc_samples=N needs dropout"):
        choose_engine(ONNX, device="cpu", precision=Precision.AUTO, sampling=True)


def test_a_folder_that_bears_the_name_of_a_package_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    assert missing_packages(["onnx", "numpy"]) == ["onnx"]


class Driver:
    """NVIDIA's driver library, with so many GPUs, or with none that it can start."""

    def __init__(self, n_gpus: int, code: int = 0) -> None:
        self._n_gpus, self._code = n_gpus, code

    def cuInit(self, _flags: int) -> int:  # noqa: N802  # the driver's name
        return self._code

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802  # the driver's name
        count._obj.value = self._n_gpus
        return 0


@pytest.mark.parametrize(
    ("driver", "seen"),
    [(Driver(2), True), (Driver(0), False), (Driver(1, code=100), False), (Driver(0, code=803), True), (None, False)],
)
def test_gpus_are_those_that_the_driver_counts_or_cannot_for_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: Driver | None, seen: bool
) -> None:
    def load(name: str) -> Driver:
        if driver is None:
            raise OSError(name)
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert may_have_gpu(tmp_path / "kfd") is seen
    (tmp_path / "kfd").touch()  # AMD's driver
    assert may_have_gpu(tmp_path / "kfd")


@pytest.mark.parametrize(
    ("engine", "module", "title"),
    [(ONNX, "drunet_cli.network.cpu_engine", "ONNX Runtime"), (OPENVINO, "openvino", "OpenVINO")],
)
def test_an_engine_that_cannot_be_imported_is_told_with_the_way_on(
    engine: EngineName, module: str, title: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MisuseError, match=rf"^{title} is installed but cannot be imported \(.*\); use engine=torch"):
        opened(checkpoint, engine)
    warnings: list[str] = []
    standing_in = open_engine(
        *(engine, checkpoint),
        device="cpu",
        precision=Precision.AUTO,
        batch_size=None,
        threads=1,
        named=False,
        on_warning=warnings.append,
    )
    assert standing_in.name == TORCH
    assert [warning.rpartition("; ")[2] for warning in warnings] == ["PyTorch computes, which is slower"]


def _export(checkpoint: Checkpoint) -> None:
    export(checkpoint, Path("never_written.onnx"), Variant(format=Format.ONNX), overwrite=False)


@pytest.mark.parametrize("use", [opened, _export])
def test_onnx_runtimes_telemetry_is_off_before_it_is_imported(
    use: Callable[[Checkpoint], None], checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it leaves an identifier of the machine in the home folder, and tells its makers of every session."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import fails, and what was to be done before it is done
    monkeypatch.delitem(sys.modules, "drunet_cli.network.cpu_engine", raising=False)
    with pytest.raises((ImportError, MisuseError)):
        use(checkpoint)
    assert os.environ.pop("ORT_DISABLE_TELEMETRY") == "1"


# A model.py that somebody has changed


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engine_module, "PROVED_FINGERPRINT", "of another pair")
    changed_network.cache_clear()
    yield
    monkeypatch.undo()
    changed_network.cache_clear()


def test_weights_that_a_changed_network_has_learnt_are_told_of(checkpoint: Checkpoint) -> None:
    learnt = replace(checkpoint, metadata=replace(checkpoint.metadata, network="0" * 64))
    warnings: list[str] = []
    for weights in (checkpoint, learnt):
        open_engine(
            *(TORCH, weights),
            device="cpu",
            precision=Precision.AUTO,
            batch_size=None,
            threads=1,
            on_warning=warnings.append,
        )
    assert [warning.partition(", and")[0] for warning in warnings] == [
        f"weights {checkpoint.metadata.name}: were trained with a network/model.py that somebody had changed"
    ]


@pytest.mark.usefixtures("unproved")
def test_onnx_runtime_never_computes_another_network_than_model_py(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(checkpoint).name is ONNX  # compared, and the same
    monkeypatch.setattr(functional, "relu", functional.softplus)
    with pytest.raises(MisuseError, match=r"computes another network than ONNX Runtime does .* use engine=torch"):
        opened(checkpoint)


@pytest.mark.usefixtures("unproved")
def test_pytorch_folds_nothing_into_a_model_that_was_changed(checkpoint: Checkpoint) -> None:
    engine = opened(checkpoint, TORCH)
    assert isinstance(engine, TorchEngine)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in engine._model.modules()) == 103


def test_a_proved_pair_is_not_compared_again(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "logits_of", lambda *_: torch.zeros(()))
    assert opened(checkpoint).name is ONNX
