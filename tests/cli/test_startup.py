"""What a command imports. torch, requests and h5py take seconds: a question, a slip or a refusal waits for none of them."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.brats import Modality
from tests.cli.small_cohort import write_case
from tests.mutations import with_fields
from tests.segmentation.sidecars import document_of, write_outputs
from tests.support import GOLDEN_IMAGES, GOLDEN_WEIGHTS, image_options

HEAVY: Final = ("torch", "requests", "h5py", "onnx", "onnxruntime", "openvino", "scipy.optimize", "SimpleITK", "matplotlib")
READERS: Final = ("numpy", "nibabel", "scipy", "safetensors", "PIL")  # of files
WEIGHTS: Final = ("--weights", str(GOLDEN_WEIGHTS))

# Runs command lines in one process, one after the other; prints the code of each and what has been imported until then.
PROGRAM: Final = f"""
import json, sys
sys.modules["pydicom"] = None  # where it is installed, nibabel imports it, and it imports requests
from drunet_cli.cli.app import main
for line in json.loads(sys.argv[1]):
    code = main(line)
    imported = [name for name in {(*HEAVY, *READERS, "pydantic")} if name in sys.modules]
    print(json.dumps([code, imported]), file=sys.stderr)
"""


def outcomes(*lines: list[str], folder: Path) -> list[tuple[int, list[str]]]:
    command = [sys.executable, "-c", PROGRAM, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, check=True)
    return [(code, names) for code, names in map(json.loads, (x for x in done.stderr.splitlines() if x.startswith("[")))]


def assert_light(lines: list[list[str]], code: int, folder: Path, *, without: tuple[str, ...] = HEAVY) -> None:
    """In one process: what the last line has not imported, none has."""
    found = outcomes(*lines, folder=folder)
    assert [line for line, (found_code, _) in zip(lines, found, strict=True) if found_code != code] == []
    assert [line for line, (_, imported) in zip(lines, found, strict=True) if set(imported) & set(without)] == []


def test_help_and_misuse_import_nothing_that_reads_files(tmp_path: Path) -> None:
    commands = (
        "|segment|train|export|evaluate|report|demo|doctor|guide|convert|convert nii2png|convert png2nii|weights|weights import"
    )
    helps = [[*command.split(), "--help"] for command in commands.split("|")] + [["--version"], ["guide", "network"]]
    assert_light(helps, 0, tmp_path, without=(*HEAVY, *READERS))
    assert_light([["--help"]], 0, tmp_path, without=("pydantic",))  # which Typer imports for the options of a command
    lines = """
        no-such-command|--no-such-option|segment|segment --t1 t1.nii.gz -o seg.nii.gz|segment cases -o out --device tpu
        segment cases -o out --precision int8|segment cases -o out --batch-size 0|train cases|train cases -o run --epochs 0
        train cases -o run --fold 5|convert nii2png -o out|convert nii2png cases -o out --jobs 0|convert png2nii slices -o out
        convert png2nii slices --like cases|export|export -o network.pt|export -o network.onnx --head sigmoid
        export -o network.h5 --precision float16|demo --write-cases 1 --device cpu|weights import|guide no-such-topic
    """
    slips = [line.split() for line in lines.replace("\n", "|").split("|") if line.strip()]
    assert_light([[], *slips], 2, tmp_path)


def test_what_lists_plans_and_converts_imports_nothing_heavy(tmp_path: Path) -> None:
    write_case(tmp_path / "cases" / "case")
    write_outputs(tmp_path / "results", document_of("case"))
    lines = ["weights list --json", "segment cases -o out --dry-run", "segment cases -o out --dry-run --weights compact"]
    lines += ["convert nii2png cases -o slices --jobs 1", "convert png2nii slices --like cases -o label_maps --jobs 1"]
    lines += ["report results -o report.html --csv cases.csv"]
    assert_light([line.split() for line in lines], 0, tmp_path)


@pytest.mark.slow
def test_refused_images_weights_and_outputs_import_nothing_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    content = GOLDEN_IMAGES[Modality.T1CE].read_bytes()
    nifti = gzip.decompress(content)
    damages = {"empty.nii.gz": b"", "truncated.nii.gz": content[: len(content) // 2], "table.nii.gz": b"case,t1,t1ce\n"}
    for field, element, value in (("srow_x", 3, 5.0), ("dim", 3, 4), ("scl_slope", 0, -1.0), ("srow_z", 2, float("nan"))):
        damages[f"{field}.nii"] = with_fields(nifti, [(field, element, value)])
    for name, bytes_ in damages.items():
        (tmp_path / name).write_bytes(bytes_)
    images = [GOLDEN_IMAGES[Modality.FLAIR], tmp_path / "absent.nii.gz", *(tmp_path / name for name in damages)]
    options = [image_options({**GOLDEN_IMAGES, Modality.T1CE: image}) for image in images]
    segments = [["segment", *each, "-o", "seg.nii.gz", *WEIGHTS] for each in options]
    assert_light([*segments, ["train", "nowhere", "-o", "run"]], 3, tmp_path)
    case = ["segment", *image_options(), "-o", "seg.nii.gz"]
    unknown = [[*case, "--weights", name] for name in ("no_such_name", "no_such_file.h5", "illegal name")]
    export = ["export", "-o", "network.onnx", "--weights", "no_such_name"]
    assert_light([*unknown, case, ["weights", "path"], export], 4, tmp_path)
    for name in ("seg.nii.gz", "phantom_0.nii.gz", "network.onnx"):
        (tmp_path / name).touch()
    assert_light([[*case, *WEIGHTS], ["demo", "-o", "."], ["export", "-o", "network.onnx"]], 6, tmp_path)


def test_a_command_that_is_not_called_is_not_imported(tmp_path: Path) -> None:
    program = "import sys; from drunet_cli.cli.app import COMMANDS, main; main(['weights', 'list']);"
    program += "print([name for name in COMMANDS if f'drunet_cli.cli.{name}' in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True
    )
    assert done.stderr == "['weights']\n"


@pytest.mark.slow
def test_a_run_imports_what_its_engine_needs_alone(tmp_path: Path) -> None:
    """And is seen to: else the tests above could not fail."""
    write_case(tmp_path / "case")
    words = ["segment", "case", *WEIGHTS, "--window", "auto", "--threads", "1"]
    (first, of_onnx), (second, of_both) = outcomes(
        [*words, "-o", "1.nii.gz", "--engine", "onnxruntime"], [*words, "-o", "2.nii.gz", "--engine", "torch"], folder=tmp_path
    )
    assert (first, {*HEAVY} & {*of_onnx}) == (0, {"h5py", "onnx", "onnxruntime"})
    assert (second, {*of_both} - {*of_onnx}) == (0, {"torch"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_light([["segment", *image_options(), "-o", str(tmp_path / "seg.nii.gz"), *WEIGHTS]], 6, tmp_path)
