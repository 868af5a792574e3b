"""`drunet segment` from files to files: the published labels, and what options change about them."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.app import main
from drunet_cli.io.inputs import file_sha256
from drunet_cli.network.model import DRUNet104
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Postprocessing, write_checkpoint
from drunet_cli.weights.keras import read_keras_h5
from tests.cli.small_cohort import write_case
from tests.support import GOLDEN, GOLDEN_IMAGES, GOLDEN_LABELS, GOLDEN_WEIGHTS, image_options, names_in, open_image, voxels_of

pytestmark = pytest.mark.usefixtures("in_tmp_path")

WEIGHTS = ["--weights", str(GOLDEN_WEIGHTS)]
UNCERTAINTY = ["seg_unc_whole.nii.gz", "seg_unc_core.nii.gz", "seg_unc_enhance.nii.gz"]
Captured = pytest.CaptureFixture[str]


def segment(
    *options: str,
    output: str = "seg.nii.gz",
    weights: list[str] = WEIGHTS,
    images: Mapping[Modality, Path] = GOLDEN_IMAGES,
) -> int:
    return main(["segment", *image_options(images), *weights, "-o", output, "--quiet", *options])


def images_of(case: str) -> dict[Modality, Path]:
    """The four images of a small case in the current folder."""
    return {modality: Path(case, f"{case}_{modality}.nii.gz") for modality in CHANNELS}


def sidecar(path: str = "seg.json") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(path).read_text())
    return document


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The label map of the golden case without any option, beside its sidecar; no test changes them."""
    path = tmp_path_factory.mktemp("plain") / "seg.nii.gz"
    assert segment(output=str(path)) == 0
    return path


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights with a head that prefers other classes."""
    checkpoint = open_weights(str(GOLDEN_WEIGHTS))
    state = {**checkpoint.state, "head.bias": checkpoint.state["head.bias"][::-1].copy() * 2}
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    write_checkpoint(path, state, checkpoint.metadata, overwrite=False)
    return path


def _reoriented(folder: Path, axcodes: str) -> dict[Modality, Path]:
    """The golden case, stored along other axes."""
    images = {}
    for modality, path in GOLDEN_IMAGES.items():
        image = open_image(path)
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes)
        )
        images[modality] = folder / f"turned_{modality}.nii.gz"
        image.as_reoriented(turn).to_filename(images[modality])
    return images


@pytest.fixture(scope="module")
def clear() -> npt.NDArray[np.bool_]:
    """[X, Y, Z]: where the two best logits of the golden case differ by 1e-3 or more; elsewhere float32 rounding may decide.

    In float64, from the weights whose logits are checked against Keras' own in tests/weights/test_keras.py.
    """
    base_width, state = read_keras_h5(GOLDEN_WEIGHTS)
    model = DRUNet104(base_width, bn_epsilon=1e-3).double().eval()
    model.load_state_dict({key: torch.from_numpy(array).double() for key, array in state.items()}, strict=False)
    slices = torch.from_numpy(np.load(GOLDEN / "slices.npz")["slices"]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        best = model(slices.double() / 255).topk(2, dim=1).values
    return np.asarray((best[:, 0] - best[:, 1] >= 1e-3).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("engine", "threads"), [("torch", "1"), ("onnxruntime", "1"), ("onnxruntime", "2")])
def test_labels_equal_those_of_the_published_scripts(
    clear: npt.NDArray[np.bool_], engine: str, threads: str, capsys: Captured
) -> None:
    assert segment("--threads", threads, "--engine", engine) == 0
    assert capsys.readouterr() == ("seg.nii.gz\n", "")
    ours, published = voxels_of("seg.nii.gz"), voxels_of(GOLDEN_LABELS)
    assert clear.mean() > 0.99
    assert np.array_equal(ours[clear], published[clear])


@pytest.mark.parametrize("axcodes", ["RAS", "PIR"])  # all 48: tests/io/test_geometry.py
def test_labels_are_the_same_however_the_images_are_stored(clear: npt.NDArray[np.bool_], axcodes: str, tmp_path: Path) -> None:
    images = _reoriented(tmp_path, axcodes)
    assert main(["segment", *image_options(images), *WEIGHTS, "-o", "seg.nii.gz", "--quiet"]) == 0
    label_map = open_image("seg.nii.gz")
    assert nib.aff2axcodes(label_map.affine) == tuple(axcodes)
    published = open_image(GOLDEN_LABELS)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(label_map.affine), nib.orientations.io_orientation(published.affine)
    )
    back = label_map.as_reoriented(turn)
    assert np.array_equal(np.asarray(back.dataobj)[clear], np.asarray(published.dataobj)[clear])
    np.testing.assert_array_equal(back.affine, published.affine)


def test_the_label_map_is_uint8_in_the_geometry_of_flair(plain: Path) -> None:
    label_map, flair = open_image(plain), open_image(GOLDEN_IMAGES[Modality.FLAIR])
    assert label_map.get_data_dtype() == np.uint8
    assert label_map.shape == flair.shape
    assert set(np.unique(np.asarray(label_map.dataobj))) <= {0, 1, 2, 4}
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units", "qoffset_y", "quatern_d"):
        np.testing.assert_array_equal(label_map.header[field], flair.header[field], err_msg=field)


def test_deterministic_is_recorded_and_changes_nothing_on_the_cpu(tmp_path: Path) -> None:
    write_case(tmp_path / "p1")
    for output, options in (("plain.nii.gz", []), ("seg.nii.gz", ["--deterministic"])):
        assert segment("--engine", "torch", *options, output=output, images=images_of("p1")) == 0
    assert Path("plain.nii.gz").read_bytes() == Path("seg.nii.gz").read_bytes()
    assert [sidecar(name)["settings"]["deterministic"] for name in ("plain.json", "seg.json")] == [False, True]


@pytest.mark.usefixtures("label_maps_unjudged")
def test_json_and_sidecar_hold_the_same_complete_object(capsys: Captured) -> None:
    assert main(["segment", *image_options(), *WEIGHTS, "-o", "out/seg.nii.gz", "--json"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    document = json.loads(line)
    assert document == json.loads(Path("out/seg.json").read_text())
    labels = voxels_of("out/seg.nii.gz")
    expected = {"NCR": labels == 1, "ED": labels == 2, "ET": labels == 4, "WT": labels > 0, "TC": (labels == 1) | (labels == 4)}
    assert document["voxels"] == {name: int(where.sum()) for name, where in expected.items()}
    assert document["volumes_ml"] == {name: count / 1000 for name, count in document["voxels"].items()}  # 1 mm3 voxels
    assert document["weights"]["sha256"] == file_sha256(GOLDEN_WEIGHTS)
    assert {modality: entry["sha256"] for modality, entry in document["inputs"].items()} == {
        modality: file_sha256(GOLDEN_IMAGES[modality]) for modality in CHANNELS
    }
    assert document["case"] == "golden"
    assert document["device"] == "cpu"
    assert document["geometry"]["frame"] == "untouched"
    assert document["versions"].keys() == {"drunet", "python", "onnxruntime", "numpy", "nibabel"}
    assert (document["settings"]["engine"], document["settings"]["window"]) == ("onnxruntime", "full")
    assert document["warnings"] == []


def test_weights_are_run_as_they_were_trained_unless_asked_otherwise(plain: Path) -> None:
    checkpoint = open_weights(str(GOLDEN_WEIGHTS))
    metadata = replace(checkpoint.metadata, window="auto")
    write_checkpoint(Path("windowed.safetensors"), checkpoint.state, metadata, overwrite=False)
    windowed = ["--weights", "windowed.safetensors"]
    assert segment(weights=windowed, output="trained.nii.gz") == segment("--window", "auto", output="auto.nii.gz") == 0
    assert segment("--window", "full", weights=windowed, output="asked.nii.gz") == 0
    windows = {name: sidecar(f"{name}.json")["settings"]["window"] for name in ("trained", "auto", "asked")}
    assert windows == {"trained": "auto", "auto": "auto", "asked": "full"}
    assert np.array_equal(voxels_of("trained.nii.gz"), voxels_of("auto.nii.gz"))
    assert np.array_equal(voxels_of("asked.nii.gz"), voxels_of(plain))
    assert not np.array_equal(voxels_of("auto.nii.gz"), voxels_of(plain))


def test_a_folder_as_output_gets_a_file_named_after_the_case(capsys: Captured) -> None:
    write_case(Path("p1"))
    for options in ([], ["--case", "P 01"]):
        assert segment("--no-sidecar", "--window", "auto", *options, output="results", images=images_of("p1")) == 0
    assert capsys.readouterr().out == "results/p1.nii.gz\nresults/P 01.nii.gz\n"
    assert names_in("results") == [
        "P 01.nii.gz",
        "p1.nii.gz",
        "summary.csv",
        "summary.xlsx",
    ]


def _scaled(folder: Path, zooms: tuple[float, float, float]) -> dict[Modality, Path]:
    """The golden case, of which every voxel is repeated or skipped to have these sizes."""
    images = {}
    for modality, path in GOLDEN_IMAGES.items():
        image = open_image(path)
        voxels = np.asarray(image.dataobj)
        for axis, zoom in enumerate(zooms):
            voxels = np.repeat(voxels, round(1 / zoom), axis=axis)
        affine = image.affine @ np.diag([*zooms, 1.0])
        affine[:3, 3] += image.affine[:3, :3] @ ((np.array(zooms) - 1) / 2)
        images[modality] = folder / f"scaled_{modality}.nii.gz"
        nib.Nifti1Image(voxels, affine).to_filename(images[modality])
    return images


@pytest.mark.usefixtures("label_maps_unjudged")
def test_finer_images_are_resampled_with_a_warning_and_return_on_their_grid(tmp_path: Path, capsys: Captured) -> None:
    images = _scaled(tmp_path, (0.5, 0.5, 1.0))
    assert main(["segment", *image_options(images), *WEIGHTS, "-o", "fine.nii.gz", "--json"]) == 0
    captured = capsys.readouterr()
    assert "Warning: in-plane spacing is 0.5 x 0.5 mm, not 1 mm" in captured.err
    assert [warning["code"] for warning in json.loads(captured.out)["warnings"]] == ["resampled"]
    fine, published = voxels_of("fine.nii.gz"), voxels_of(GOLDEN_LABELS)
    assert fine.shape == (480, 480, 5)
    # Each 1 mm pixel is 2 x 2 of these, which interpolation may give to a neighbour at the borders of classes; the golden
    # network is random, so its label map is nearly all borders. 85 % were seen to agree; a frame off by one pixel gives 60 %.
    assert (fine[::2, ::2] == published).mean() > 0.8


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--device", "cuda:5"], 5, "Error: device cuda:5: "),
        (["--weights", "nonesuch"], 4, "Error: weights 'nonesuch' are not known; known: brats2020, compact, or give a .h5"),
        (["--weights", "absent.h5"], 4, "Error: absent.h5: no such weights file"),
        (["--device", "gpu"], 2, "Error: Invalid value for '--device': 'gpu' is none of auto, cpu, cuda, cuda:N, mps"),
        (["--engine", "onnxruntime", "--device", "cuda"], 2, "Error: --engine onnxruntime computes on the CPU in float32"),
        (["--fast", "--window", "full"], 2, "Error: --fast chooses window and precision itself; leave them out"),
        (["--window", "small"], 2, "Error: Invalid value for '--window': 'small' is not one of 'full', 'auto'"),
        (["--threads", "0"], 2, "Error: Invalid value for '--threads'"),
        (["--case", "a/b"], 2, "Error: --case 'a/b'"),
        (["-o", "seg.mha"], 2, "Error: -o seg.mha: drunet writes NAME.nii.gz or NAME.nii"),
        (["-o", "seg.nii.bz2"], 2, "Error: -o seg.nii.bz2: drunet writes NAME.nii.gz or NAME.nii"),
        (["-o", "seg.JSON"], 2, "Error: -o seg.JSON: drunet writes NAME.nii.gz or NAME.nii"),
        (["-o", ".nii.gz"], 2, "Error: -o .nii.gz: drunet writes NAME.nii.gz or NAME.nii"),
        (["--device", "cuda:99999999999"], 2, "Error: Invalid value for '--device'"),
    ],
)
def test_what_cannot_work_ends_in_one_line_and_its_exit_code(
    arguments: list[str], code: int, line: str, capsys: Captured
) -> None:
    output = [] if "-o" in arguments else ["-o", "seg.nii.gz"]
    assert main(["segment", *image_options(), *WEIGHTS, *output, *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1
    assert not Path("seg.nii.gz").exists()


def test_images_that_cannot_be_segmented_are_named_with_the_remedy(capsys: Captured) -> None:
    write_case(Path("p1"))
    path = images_of("p1")[Modality.T2]
    image = open_image(path)
    voxels = image.get_fdata(dtype=np.float32)
    nib.Nifti1Image(np.where(voxels == voxels.max(), np.nan, voxels), image.affine).to_filename(path)
    assert segment(images=images_of("p1")) == 3
    assert re.match(f"Error: {path} .*voxels are NaN or infinite; .+", capsys.readouterr().err)
    assert names_in(".") == ["p1"]


def test_two_runs_into_one_folder_do_not_meet(capsys: Captured) -> None:
    write_case(Path("p1"))
    options = ["segment", *image_options(images_of("p1")), *WEIGHTS, "--window", "auto", "-o", "seg.nii.gz"]
    assert main(options) == 0
    before = Path("seg.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert main(options) == 6
    assert capsys.readouterr().err == "Error: seg.nii.gz: exists already; give --overwrite to replace it\n"
    assert Path("seg.nii.gz").stat().st_mtime_ns == before
    assert main([*options, "--overwrite"]) == 0
    assert Path("seg.nii.gz").stat().st_mtime_ns > before


# Means over several passes, clean-up, and the files beside the label map


def test_probabilities_are_those_that_the_labels_follow() -> None:
    assert segment("--probabilities") == 0
    assert names_in(".") == ["seg.json", "seg.nii.gz", "seg_probabilities.nii.gz"]
    image, flair = open_image("seg_probabilities.nii.gz"), open_image(GOLDEN_IMAGES[Modality.FLAIR])
    assert image.shape == (*flair.shape, 4)
    np.testing.assert_array_equal(image.affine, flair.affine)
    probabilities = np.asarray(image.dataobj)
    np.testing.assert_allclose(probabilities.sum(axis=3), 1, atol=2e-3)  # rounded to float16
    best = np.sort(probabilities, axis=3)
    clear = best[..., 3] - best[..., 2] > 2e-3
    assert clear.mean() > 0.9
    assert np.array_equal(np.array([0, 1, 2, 4])[probabilities.argmax(axis=3)][clear], voxels_of("seg.nii.gz")[clear])
    assert sidecar()["files"] == {"seg_probabilities.nii.gz": file_sha256(Path("seg_probabilities.nii.gz"))}


def test_uncertainty_is_written_under_the_names_of_brats_2020_and_can_be_scored(capsys: Captured) -> None:
    write_case(Path("p1"))
    options = ["--uncertainty", "--mc-samples", "2", "--dropout", "0.2", "--seed", "3", "--window", "auto"]
    assert segment(*options, images=images_of("p1")) == 0
    assert names_in(".") == sorted(["p1", "seg.json", "seg.nii.gz", "seg_entropy.nii.gz", *UNCERTAINTY])
    for name in UNCERTAINTY:
        image = open_image(name)
        assert image.get_data_dtype() == np.uint8
        assert 0 < np.asarray(image.dataobj).max() <= 100
    assert 0 < voxels_of("seg_entropy.nii.gz").max() <= np.log(4) + 1e-6
    assert {"mc_samples": 2, "dropout": {"rate": 0.2, "source": "given"}, "seed": 3}.items() <= sidecar()["settings"].items()
    capsys.readouterr()
    shutil.copy("seg.nii.gz", "truth.nii.gz")
    assert main(["evaluate", "seg.nii.gz", "truth.nii.gz", "--uncertainty", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["regions"]["WT"]["uncertainty"]
    assert scores["dice_auc"] == 1.0


def test_flips_and_several_weights_are_recorded_and_change_the_answer(other_weights: Path, plain: Path) -> None:
    assert segment("--tta", "flips", output="flips.nii.gz") == 0
    assert segment("--weights", str(other_weights), output="both.nii.gz") == 0
    assert sidecar("flips.json")["settings"]["tta"] == "flips"
    assert [each["name"] for each in sidecar("both.json")["weights"]] == ["keras_base1", "keras_base1"]
    assert len({each["sha256"] for each in sidecar("both.json")["weights"]}) == 2
    assert (voxels_of("flips.nii.gz") != voxels_of(plain)).any()
    assert (voxels_of("both.nii.gz") != voxels_of(plain)).any()


def test_recommended_postprocessing_is_that_of_the_weights(plain: Path, capsys: Captured) -> None:
    golden = open_weights(WEIGHTS[1])
    recommending = replace(golden.metadata, postprocessing=Postprocessing(min_enhancing_ml=1000))
    write_checkpoint(Path("recommending.safetensors"), golden.state, recommending, overwrite=False)
    weights = ["--weights", "recommending.safetensors"]
    assert segment("--postprocess", "recommended", weights=weights) == 0
    before, document = voxels_of(plain), sidecar()
    assert np.array_equal(voxels_of("seg.nii.gz"), np.where(before == 4, 1, before))
    assert (document["settings"]["min_enhancing_ml"], document["voxels"]["ET"]) == (1000, 0)
    assert document["postprocessing"]["voxels_enhancing_to_ncr"] == np.count_nonzero(before == 4)
    capsys.readouterr()
    assert main(["weights", "info", "recommending.safetensors"]) == 0
    assert "--min-enhancing 1000 (--postprocess recommended)" in capsys.readouterr().out


def test_three_volumes_are_for_the_parts_of_the_three_regions(plain: Path) -> None:
    assert segment("--min-volume", "0,1000,0") == 0
    before, after = voxels_of(plain), voxels_of("seg.nii.gz")
    assert np.array_equal(after, np.where((before == 1) | (before == 4), 2, before))
    assert sidecar()["settings"]["min_volume_ml"] == [0, 1000, 0]
    assert segment("--min-volume", "0,1000,0", "--skip-existing") == 0


def test_labels_outside_the_brain_are_removed_and_the_sidecar_says_so(plain: Path) -> None:
    assert segment("--within-brain") == 0
    before, after = voxels_of(plain), voxels_of("seg.nii.gz")
    brain = np.any([np.asarray(open_image(path).dataobj) > 0 for path in GOLDEN_IMAGES.values()], axis=0)
    assert np.array_equal(after, np.where(brain, before, 0))
    document = sidecar()
    assert document["postprocessing"]["voxels_outside_brain_removed"] == np.count_nonzero(before[~brain]) > 0
    assert document["settings"]["within_brain"] is True
    codes = [[each["code"] for each in sidecar(str(path))["warnings"]] for path in (plain.with_name("seg.json"), "seg.json")]
    assert ["labels-outside-brain" in each for each in codes] == [True, False]


def test_a_strict_run_of_one_case_is_bad_input_and_writes_nothing(capsys: Captured) -> None:
    assert segment("--strict", "--preview") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "of the tumour (90.1%) lie outside the brain" in line
    assert line.endswith("(strict: the warning labels-outside-brain is a failure)")
    assert names_in(".") == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--mc-samples", "2"],
            "--mc-samples N: the weights keras_base1 do not record their dropout rate; name one by --dropout P",
        ),
        (
            ["--postprocess", "recommended"],
            "--postprocess recommended: the weights keras_base1 recommend none; give --min-volume N or --min-enhancing N",
        ),
        (
            ["--postprocess", "recommended", "--min-volume", "1"],
            "--postprocess recommended chooses --min-volume N and --min-enhancing N; leave them out",
        ),
        (["--dropout", "0.2"], "--dropout P and --seed N are for samples; give --mc-samples N too"),
        (
            ["--mc-samples", "2", "--dropout", "0.2", "--engine", "onnxruntime"],
            "--mc-samples N needs dropout, which --engine onnxruntime has not; use --engine torch",
        ),
        (["--mc-samples", "2", "--dropout", "0"], "--dropout 0: samples differ only with a rate above 0"),
        (["--min-volume", "-1"], "Invalid value for '--min-volume': '-1' is neither a volume in mL nor three of them"),
        (["--min-volume", "1,2"], "Invalid value for '--min-volume': '1,2' is neither a volume in mL nor three of them"),
        (["--min-enhancing", "inf"], "Invalid value for '--min-enhancing'"),
        (["--tta", "rotations"], "Invalid value for '--tta'"),
    ],
)
def test_what_makes_no_sense_is_misuse(options: list[str], line: str, capsys: Captured) -> None:
    assert segment(*options) == 2
    assert capsys.readouterr().err.startswith(f"Error: {line}")
    assert names_in(".") == []
