"""What a command imports. torch, requests and h5py take seconds: a question, a slip or a refusal waits for none of them."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from drunet_cli.brats import Modality
from tests.cli.small_cohort import write_case
from tests.mutations import with_fields
from tests.support import GOLDEN_IMAGES, GOLDEN_WEIGHTS, image_options

HEAVY: Final = ("torch", "requests", "h5py", "onnx", "onnxruntime")

PROGRAM: Final = f"""
import json, sys
from drunet_cli.cli.app import main
code = main(sys.argv[1:])
print(json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]), file=sys.stderr)
"""


def outcome(*arguments: str | Path, folder: Path) -> tuple[int, list[str]]:
    """Exit code of one command line, and which of the heavy packages it has imported."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, check=True)
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    return code, heavy


def changed(modality: Modality, *changes: tuple[str, int, float], folder: Path) -> list[str]:
    """The options of the golden case with header fields of one image changed."""
    image = folder / f"{modality}.nii"
    image.write_bytes(with_fields(gzip.decompress(GOLDEN_IMAGES[modality].read_bytes()), changes))
    return image_options({**GOLDEN_IMAGES, modality: image})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["segment", "--help"],
        ["export", "--help"],
        ["demo", "--help"],
        ["convert", "--help"],
        ["convert", "nii2png", "--help"],
        ["convert", "png2nii", "--help"],
        ["weights", "--help"],
        ["weights", "import", "--help"],
        ["weights", "list"],
        ["weights", "list", "--json"],
    ],
    ids=" ".join,
)
def test_answer_that_needs_no_network_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert outcome(*arguments, folder=tmp_path) == (0, [])


@pytest.mark.parametrize("command", [[], ["segment"], ["train"], ["export"], ["evaluate"], ["demo"]], ids=" ".join)
def test_help_does_not_even_read_what_reads_files(command: list[str]) -> None:
    """These took a third of the help's time once."""
    program = "import sys\nfrom drunet_cli.cli.app import main\nmain(sys.argv[1:])\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, check=True)
    assert not {"nibabel", "safetensors", "scipy"} & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["--no-such-option"],
        ["segment"],
        ["segment", "--t1", "t1.nii.gz", "-o", "seg.nii.gz"],
        ["segment", *image_options()],
        ["segment", *image_options(), "-o", "seg.nii.gz", "--device", "tpu"],
        ["segment", *image_options(), "-o", "seg.nii.gz", "--precision", "int8"],
        ["segment", *image_options(), "-o", "seg.nii.gz", "--batch-size", "0"],
        ["segment", *image_options(), "-o", "seg.nii.gz", "--case", "../elsewhere"],
        ["segment", *image_options(), "-o", "seg.mgz"],
        ["convert", "no-such-command"],
        ["train", "cases"],
        ["train", "-o", "run"],
        ["train", "cases", "-o", "run", "--epochs", "0"],
        ["train", "cases", "-o", "run", "--folds", "5"],
        ["convert", "nii2png", "-o", "slices"],
        ["convert", "nii2png", "cases"],
        ["convert", "nii2png", *image_options(), "cases", "-o", "slices"],
        ["convert", "nii2png", "cases", "-o", "slices", "--jobs", "0"],
        ["convert", "nii2png", "cases", "-o", "slices", "--channels", "t1,t2"],
        ["convert", "png2nii", "slices", "-o", "label_maps"],
        ["convert", "png2nii", "slices", "--like", "cases"],
        ["convert", "png2nii", "slices", "--like", "cases", "-o", "label_maps", "--labels", "brats2024"],
        ["export"],
        ["export", "-o", "network"],
        ["export", "-o", "network.pt"],
        ["export", "-o", "network.onnx", "--format", "tflite"],
        ["export", "-o", "network.h5", "--format", "onnx"],
        ["export", "-o", "network.onnx", "--head", "sigmoid"],
        ["export", "-o", "network.onnx", "--precision", "bfloat16"],
        ["export", "-o", "network.h5", "--precision", "float16"],
        ["export", "-o", "network.h5", "--head", "softmax"],
        ["demo", "--write-cases", "1", "--device", "cpu"],
        ["weights", "import"],
        ["weights", "import", "weights.h5", "--epsilon", "2"],
    ],
    ids=lambda arguments: " ".join(arguments[-2:]) or "nothing",
)
def test_usage_error_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert outcome(*arguments, folder=tmp_path) == (2, [])


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "not NIfTI", "a folder", "given twice"])
def test_unusable_file_is_refused_before_anything_heavy_is_imported(damage: str, tmp_path: Path) -> None:
    image = tmp_path / "t2.nii.gz"
    content = GOLDEN_IMAGES[Modality.T2].read_bytes()
    match damage:
        case "empty":
            image.touch()
        case "truncated":
            image.write_bytes(content[: len(content) // 2])
        case "not NIfTI":
            image.write_text("case,t1,t1ce,t2,flair\n")
        case "a folder":
            image.mkdir()
        case "given twice":
            image = GOLDEN_IMAGES[Modality.FLAIR]
    images = {**GOLDEN_IMAGES, Modality.T2: image}
    assert outcome("segment", *image_options(images), "-o", "seg.nii.gz", *WEIGHTS, folder=tmp_path) == (3, [])


WEIGHTS: Final = ("--weights", GOLDEN_WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [("srow_x", 3, 5.0), ("dim", 3, 4), ("dim", 0, 4), ("scl_slope", 0, -1.0), ("scl_inter", 0, np.inf), ("srow_z", 2, np.nan)],
    ids=["other affine", "other shape", "4D", "negative", "intercept not finite", "affine not finite"],
)
def test_image_that_fails_a_check_is_refused_before_anything_heavy_is_imported(
    change: tuple[str, int, float], tmp_path: Path
) -> None:
    options = changed(Modality.T1CE, change, ("dim", 4, 2), folder=tmp_path)
    assert outcome("segment", *options, "-o", "seg.nii.gz", *WEIGHTS, folder=tmp_path) == (3, [])


@pytest.mark.parametrize("weights", ["no_such_name", "no_such_file.h5", "illegal name"])
def test_unknown_weights_are_refused_before_anything_heavy_is_imported(weights: str, tmp_path: Path) -> None:
    assert outcome("segment", *image_options(), "-o", "seg.nii.gz", "--weights", weights, folder=tmp_path) == (4, [])


def test_missing_weights_are_refused_offline_before_anything_heavy_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    assert outcome("segment", *image_options(), "-o", "seg.nii.gz", folder=tmp_path) == (4, [])


def test_uncached_weights_have_no_path_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    assert outcome("weights", "path", folder=tmp_path) == (4, [])


def test_existing_output_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "seg.nii.gz").touch()
    assert outcome("segment", *image_options(), "-o", "seg.nii.gz", *WEIGHTS, folder=tmp_path) == (6, [])


def test_existing_demo_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "phantom_0.nii.gz").touch()
    assert outcome("demo", "-o", ".", folder=tmp_path) == (6, [])


def test_existing_export_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "network.onnx").touch()
    assert outcome("export", "-o", "network.onnx", folder=tmp_path) == (6, [])


def test_dry_run_imports_nothing_heavy(tmp_path: Path) -> None:
    write_case(tmp_path / "cases" / "case")
    assert outcome("segment", "cases", "-o", "out", "--dry-run", folder=tmp_path) == (0, [])
    assert outcome("segment", "cases", "-o", "out", "--dry-run", "--weights", "compact", folder=tmp_path) == (0, [])


def test_unknown_weights_are_not_exported_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    assert outcome("export", "-o", "network.onnx", "--weights", "no_such_name", folder=tmp_path) == (4, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert outcome("segment", *image_options(), "-o", tmp_path / "seg.nii.gz", *WEIGHTS, folder=tmp_path) == (6, [])


@pytest.mark.parametrize(
    ("engine", "packages"), [("onnxruntime", ["h5py", "onnx", "onnxruntime"]), ("torch", ["torch", "h5py"])]
)
def test_program_that_segments_imports_what_its_engine_needs_alone(engine: str, packages: list[str], tmp_path: Path) -> None:
    """And is seen to: else the tests above could not fail."""
    code, heavy = outcome("segment", *image_options(), "-o", "seg.nii.gz", *WEIGHTS, "--engine", engine, folder=tmp_path)
    assert (code, heavy) == (0, packages)


def test_conversion_there_and_back_imports_nothing_heavy(tmp_path: Path) -> None:
    write_case(tmp_path / "case")
    assert outcome("convert", "nii2png", "case", "-o", "slices", folder=tmp_path) == (0, [])
    assert outcome("convert", "png2nii", "slices", "--like", "case", "-o", "label_maps", folder=tmp_path) == (0, [])
