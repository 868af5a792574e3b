"""Which engine computes."""

import ctypes
import os
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest

from drunet_cli.errors import MisuseError
from drunet_cli.host import may_have_gpu
from drunet_cli.network import engine
from drunet_cli.network.engine import EngineName, Precision, choose_engine, open_engine
from drunet_cli.network.export import Format, Variant, export
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint
from tests.support import GOLDEN_WEIGHTS

AUTO, TORCH, ONNX = EngineName.AUTO, EngineName.TORCH, EngineName.ONNXRUNTIME


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set up what is installed: the build of PyTorch, whether the driver shows a GPU, whether the extra is there."""

    def setup(*, build: str = "2.13.0+cpu", gpu: bool = False, missing: str = "") -> None:
        find = util.find_spec
        monkeypatch.setattr(metadata, "version", lambda _: build)
        monkeypatch.setattr(engine, "may_have_gpu", lambda: gpu)
        monkeypatch.setattr(util, "find_spec", lambda name: None if name == missing else find(name))

    return setup


@pytest.mark.parametrize(
    ("build", "gpu", "device", "precision", "expected"),
    [
        ("2.13.0+cpu", False, "auto", "auto", ONNX),
        ("2.13.0+cpu", True, "auto", "auto", ONNX),  # a GPU that this PyTorch cannot use
        ("2.13.0", False, "auto", "float32", ONNX),
        ("2.13.0+cu130", True, "auto", "auto", TORCH),
        ("2.13.0", True, "auto", "auto", TORCH),
        ("2.13.0", True, "cpu", "auto", ONNX),
        ("2.6.0+git6a3d1f9", True, "auto", "auto", TORCH),
        ("2.13.0+cpu", False, "cpu", "bfloat16", TORCH),
        ("2.13.0", False, "cuda:1", "auto", TORCH),
        ("2.13.0", False, "mps", "auto", TORCH),
    ],
)
def test_auto_is_onnx_runtime_on_a_cpu_in_float32_and_pytorch_elsewhere(
    machine: Any, build: str, gpu: bool, device: str, precision: str, expected: EngineName
) -> None:
    machine(build=build, gpu=gpu)
    assert choose_engine(AUTO, device=device, precision=Precision(precision)) is expected


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_auto_is_pytorch_where_a_package_of_the_extra_is_missing(machine: Any, package: str) -> None:
    machine(missing=package)
    assert choose_engine(AUTO, device="cpu", precision=Precision.AUTO) is TORCH


def test_onnx_runtime_by_name_where_it_is_missing_says_how_to_install_it(machine: Any) -> None:
    machine(missing="onnxruntime")
    with pytest.raises(MisuseError, match=r"onnxruntime not installed; run: pip install 'drunet-cli\[onnx\]'"):
        choose_engine(ONNX, device="auto", precision=Precision.AUTO)


@pytest.mark.parametrize(("device", "precision"), [("cuda", "auto"), ("mps", "auto"), ("cpu", "float16")])
def test_onnx_runtime_by_name_is_refused_for_what_it_is_not_used_for(machine: Any, device: str, precision: str) -> None:
    machine()
    with pytest.raises(MisuseError, match="on the CPU in float32; for others use --engine torch"):
        choose_engine(ONNX, device=device, precision=Precision(precision))


def test_pytorch_by_name_needs_nothing_else(machine: Any) -> None:
    machine(missing="onnx")
    assert choose_engine(TORCH, device="cpu", precision=Precision.FLOAT16) is TORCH


class _Driver:
    """NVIDIA's driver library, with so many GPUs, or with none that it can start."""

    def __init__(self, n_gpus: int, code: int = 0) -> None:
        self._n_gpus, self._code = n_gpus, code

    def cuInit(self, _flags: int) -> int:  # noqa: N802  # the driver's name
        return self._code

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802  # the driver's name
        count._obj.value = self._n_gpus
        return 0


@pytest.mark.parametrize(
    ("driver", "seen"), [(_Driver(2), True), (_Driver(0), False), (_Driver(1, code=100), False), (_Driver(0, code=803), True)]
)
def test_gpus_are_those_that_the_driver_counts_or_cannot_for_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: _Driver, seen: bool
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    assert may_have_gpu(tmp_path / "kfd") is seen


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not may_have_gpu(tmp_path / "kfd")


def test_amds_driver_may_have_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "kfd").touch()
    assert may_have_gpu(tmp_path / "kfd")


def test_onnx_runtime_that_cannot_be_imported_is_told_with_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drunet_cli.network.onnx_engine", None)
    with pytest.raises(MisuseError, match=r"cannot be imported \(.*\); use --engine torch"):
        open_engine(
            ONNX,
            open_weights(str(GOLDEN_WEIGHTS)),
            device="cpu",
            precision=Precision.FLOAT32,
            batch_size=None,
            threads=1,
            on_warning=print,
        )


def test_a_folder_that_bears_the_name_of_a_package_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    with pytest.raises(MisuseError, match="onnx"):
        engine.check_onnx()


def _open(checkpoint: Checkpoint, _folder: Path) -> None:
    open_engine(ONNX, checkpoint, device="cpu", precision=Precision.AUTO, batch_size=None, threads=1, on_warning=lambda _: None)


def _export(checkpoint: Checkpoint, folder: Path) -> None:
    export(checkpoint, folder / "network.onnx", Variant(format=Format.ONNX), overwrite=False)


@pytest.mark.parametrize("use", [_open, _export])
def test_onnx_runtime_is_kept_to_itself_before_it_is_imported(
    use: Callable[[Checkpoint, Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else it leaves an identifier of the machine in the home folder, and tells its makers of every session."""
    checkpoint = open_weights(str(GOLDEN_WEIGHTS))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import fails, and what was to be done before it is done
    monkeypatch.delitem(sys.modules, "drunet_cli.network.onnx_engine", raising=False)
    with pytest.raises((ImportError, MisuseError)):
        use(checkpoint, tmp_path)
    assert os.environ.pop("ORT_DISABLE_TELEMETRY") == "1"
