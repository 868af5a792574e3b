"""The Python interface: files or arrays in, arrays or files out, the same as `drunet segment`."""

import base64
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pytest

import drunet_cli
from drunet_cli import SegmentedCase, Segmenter
from drunet_cli.brats import regions_in_words
from drunet_cli.cli.app import main
from drunet_cli.errors import CaseError, DeviceError, MisuseError, WeightsError
from drunet_cli.io.inputs import file_sha256
from drunet_cli.segmentation.summary import COLUMNS
from drunet_cli.weights.registry import BUNDLED, COMPACT, Bundled
from tests.support import GOLDEN_IMAGES, GOLDEN_WEIGHTS, image_options, names_in, open_image

FILES: Final[dict[str, Any]] = {str(modality): path for modality, path in GOLDEN_IMAGES.items()}
# The same for every run and machine, so left out where two runs are compared.
NOT_COMPARED: Final = ("seconds", "time", "output", "output_sha256", "labels", "files", "inputs")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(GOLDEN_WEIGHTS, device="cpu", threads=1)


@pytest.fixture(scope="module")
def result(segmenter: Segmenter) -> SegmentedCase:
    return segmenter.segment(**FILES)


@pytest.fixture(scope="module")
def arrays() -> dict[str, npt.NDArray[Any]]:
    return {name: np.asarray(open_image(path).dataobj) for name, path in FILES.items()}


@pytest.fixture(scope="module")
def affine() -> npt.NDArray[np.float64]:
    return np.asarray(open_image(FILES["flair"]).affine)


def test_a_case_comes_out_as_from_the_command_line(result: SegmentedCase, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.nii.gz", tmp_path / "theirs.nii.gz"
    command = [
        "segment",
        *image_options(),
        "--weights",
        str(GOLDEN_WEIGHTS),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--preview",
        "--viewer",
    ]
    assert main([*command, "-o", str(theirs), "--quiet"]) == 0
    result.save(ours, preview=True, viewer=True)
    assert ours.read_bytes() == theirs.read_bytes()
    sidecars = [json.loads(path.with_name(f"{path.name[:-7]}.json").read_text()) for path in (ours, theirs)]
    assert sidecars[0]["inputs"] == sidecars[1]["inputs"]
    one, other = ({key: value for key, value in each.items() if key not in NOT_COMPARED} for each in sidecars)
    assert one == other
    for ending in ("_preview.png", "_view.html"):
        pictures = [path.with_name(f"{path.name[:-7]}{ending}").read_bytes() for path in (ours, theirs)]
        assert pictures[0] == pictures[1]


def test_what_a_case_holds_is_what_its_file_holds(result: SegmentedCase, tmp_path: Path) -> None:
    result.save(tmp_path / "seg.nii", sidecar=False)
    assert [path.name for path in tmp_path.iterdir()] == ["seg.nii"]
    image = open_image(tmp_path / "seg.nii")
    np.testing.assert_array_equal(result.label_map, np.asarray(image.dataobj))
    np.testing.assert_array_equal(result.affine, image.affine)
    assert result.label_map.dtype == np.uint8
    assert set(np.unique(result.label_map)) <= {0, 1, 2, 4}
    assert result.volumes_ml["WT"] == pytest.approx(np.count_nonzero(result.label_map) / 1000, abs=1e-3)
    assert result.probabilities is None
    assert result.uncertainty is None


def test_arrays_give_what_their_files_give(
    segmenter: Segmenter, result: SegmentedCase, arrays: dict[str, Any], affine: npt.NDArray[np.float64], tmp_path: Path
) -> None:
    found = segmenter.segment(**arrays, affine=affine)
    np.testing.assert_array_equal(found.label_map, result.label_map)
    np.testing.assert_array_equal(found.affine, affine)
    assert found.document["case"] == "case"
    assert found.document["inputs"] == {}
    found.save(tmp_path / "seg.nii.gz")
    image = open_image(tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), result.label_map)
    np.testing.assert_array_equal(image.get_sform(), affine)
    assert (int(image.header["sform_code"]), image.header.get_xyzt_units()[0]) == (1, "mm")


def test_arrays_may_be_changed_when_their_case_is_segmented(
    segmenter: Segmenter, result: SegmentedCase, arrays: dict[str, Any], affine: npt.NDArray[np.float64]
) -> None:
    """A program that reads case after case into the same arrays."""
    given = {name: voxels.copy() for name, voxels in arrays.items()}
    found = segmenter.segment(**given, affine=affine, name="golden")
    for voxels in given.values():
        voxels[...] = 0
    assert found._repr_png_() == result._repr_png_()


def test_results_stand_in_lists_and_dictionaries_and_print_as_one_line(result: SegmentedCase) -> None:
    other = replace(result)
    assert [other, result].index(result) == 1
    assert {result: "first", other: "second"}[result] == "first"
    assert repr(result) == f"<SegmentedCase golden: {regions_in_words(result.volumes_ml)}>"


def test_arrays_in_another_orientation_come_back_in_it(
    segmenter: Segmenter, result: SegmentedCase, arrays: dict[str, Any], affine: npt.NDArray[np.float64]
) -> None:
    """Turned as nibabel turns an image, axes and affine; the labels are turned likewise."""
    turned = {name: voxels.transpose(2, 0, 1)[::-1] for name, voxels in arrays.items()}
    first = affine[:, [2, 0, 1, 3]].copy()
    first[:, 3] += first[:, 0] * (turned["flair"].shape[0] - 1)
    first[:, 0] *= -1
    found = segmenter.segment(**turned, affine=first, labels="brats2023", name="turned")
    expected = np.where(result.label_map == 4, 3, result.label_map).transpose(2, 0, 1)[::-1]
    np.testing.assert_array_equal(found.label_map, expected)
    assert found.document["case"] == "turned"


def test_maps_are_there_where_they_are_asked_for(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    several = Segmenter([GOLDEN_WEIGHTS, str(GOLDEN_WEIGHTS)], device="cpu", threads=1, probabilities=True, uncertainty=True)
    found = several.segment(**FILES, on_progress=lambda *done: progress.append(done))
    assert progress[-1][0] == progress[-1][1]
    assert found.probabilities is not None
    assert found.uncertainty is not None
    assert found.probabilities.shape == (*found.label_map.shape, 4)
    np.testing.assert_allclose(found.probabilities.sum(axis=3, dtype=np.float32), 1, atol=3e-3)
    assert list(found.uncertainty) == ["WT", "TC", "ET"]
    found.save(tmp_path / "seg.nii.gz")
    assert names_in(tmp_path) == [
        "seg.json",
        "seg.nii.gz",
        *(f"seg_{name}.nii.gz" for name in ("entropy", "probabilities", "unc_core", "unc_enhance", "unc_whole")),
    ]


def test_a_case_is_an_image_a_row_and_a_picture(result: SegmentedCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result.save(tmp_path / "seg.nii", preview=True)
    image = result.to_nibabel()
    assert image.to_bytes() == (tmp_path / "seg.nii").read_bytes()
    png = (tmp_path / "seg_preview.png").read_bytes()
    assert result._repr_png_() == png
    assert base64.b64encode(png).decode() in result._repr_html_()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    (row,) = result.to_dataframe()
    assert tuple(row) == COLUMNS
    assert (row["case"], row["wt_ml"]) == ("golden", result.volumes_ml["WT"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MisuseError, match="pip install pandas"):
        result.to_dataframe()


def test_a_notebook_gets_a_bar_and_no_other_program(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for IPython, which is not among the packages that the tests need."""
    drawn: list[str] = []

    class Shown:
        def update(self, text: str) -> None:
            drawn.append(text)

    shell = SimpleNamespace()
    display = SimpleNamespace(HTML=str, display=lambda _html, *, display_id: Shown())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    segmenter.segment(**FILES)  # IPython in a terminal has no kernel
    assert drawn == []
    shell.kernel = object()
    segmenter.segment(**FILES, name="a<b")
    assert drawn[-1].startswith('a&lt;b: <progress value="')
    done, n_slices = re.findall(r"\d+", drawn[-1])[:2]
    assert done == n_slices


def test_weights_are_checked_before_the_first_case() -> None:
    Segmenter("compact").check()
    with pytest.raises(WeightsError, match=r"no\.h5: no such weights file"):
        Segmenter("no.h5").check()


BAD_ARRAYS: Final[dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]] = {
    "has the shape": lambda voxels: voxels[0],
    "one real number a voxel": lambda voxels: voxels.astype(np.complex64),
    "NaN or infinite": lambda voxels: np.where(voxels > 0, np.nan, 0),
    "not on the grid of FLAIR": lambda voxels: voxels[:-1],
}


@pytest.mark.parametrize("reason", BAD_ARRAYS)
def test_an_array_that_is_no_image_is_named(
    reason: str, segmenter: Segmenter, arrays: dict[str, Any], affine: npt.NDArray[np.float64]
) -> None:
    with pytest.raises(CaseError, match=reason) as caught:
        segmenter.segment(**{**arrays, "t2": BAD_ARRAYS[reason](arrays["t2"])}, affine=affine)
    assert "t2" in str(caught.value).lower()


def test_files_and_arrays_are_not_mixed(segmenter: Segmenter, arrays: dict[str, Any], affine: npt.NDArray[np.float64]) -> None:
    with pytest.raises(MisuseError, match="not some of each"):
        segmenter.segment(**{**FILES, "t1": arrays["t1"]}, affine=affine)
    with pytest.raises(MisuseError, match="arrays need an affine"):
        segmenter.segment(**arrays)
    with pytest.raises(MisuseError, match="leave it out"):
        segmenter.segment(**FILES, affine=affine)


def test_an_absent_device_is_known_before_weights_are_fetched() -> None:
    segmenter = Segmenter(device="cuda:97", open_weights=lambda _: pytest.fail("weights were opened"))
    with pytest.raises(DeviceError):
        segmenter.segment(**FILES)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"weights": []}, ValueError, "at least one"),
        ({"precision": "float8"}, ValueError, "is not a valid"),
        ({"engine": "tensorflow"}, ValueError, "is not a valid"),
        ({"window": "half"}, ValueError, "is not a valid"),
        ({"mc_samples": -1}, ValueError, "mc_samples=-1: must be 0 or more"),
        ({"mc_samples": 2.5}, ValueError, "mc_samples=2.5: must be a whole number"),
        ({"batch_size": "4"}, ValueError, "batch_size=4: must be a whole number"),
        ({"min_volume_ml": [1, 2]}, ValueError, "give one volume, or one each for WT, TC, ET"),
        ({"dropout": 0.5}, MisuseError, "give mc_samples=N too"),
        (
            {"engine": "onnxruntime", "mc_samples": 2},
            MisuseError,
            "which engine=onnxruntime has not",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_named_as_parameters(settings: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        Segmenter(**{"weights": GOLDEN_WEIGHTS, **settings})


def test_numbers_may_be_those_of_numpy_and_volumes_a_list(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "batch_size": np.int64(2),
        "threads": np.int64(1),
        "mc_samples": np.int64(1),
        "dropout": np.float32(0.5),
        "seed": np.int64(3),
        "within_brain": np.True_,
        "deterministic": np.True_,
        "min_volume_ml": [np.float32(0.5), 0.25, 0],  # a list, as in a sidecar
        "min_enhancing_ml": np.float32(0.125),
    }
    segmenter = Segmenter(GOLDEN_WEIGHTS, device="cpu", **given)
    segmenter.segment(**FILES).save(tmp_path / "seg.nii.gz")
    settings = json.loads((tmp_path / "seg.json").read_bytes())["settings"]
    assert settings["seed"] == 3
    assert settings["dropout"] == {"rate": 0.5, "source": "given"}
    assert settings["min_volume_ml"] == [0.5, 0.25, 0]


def test_a_label_map_is_saved_as_nifti_or_not_at_all(result: SegmentedCase, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"NAME\.nii"):
        result.save(tmp_path / "seg.mha")
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_told_to_the_logger(
    monkeypatch: pytest.MonkeyPatch, golden_is_published: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    with caplog.at_level(logging.WARNING, logger="drunet_cli"):
        assert Segmenter(device="cpu", threads=1).segment(**FILES).document["weights"]["base_width"] == 1
    assert f"from {GOLDEN_WEIGHTS.as_uri()}" in caplog.text


def test_what_weights_are_for_is_told_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = replace(BUNDLED[COMPACT], name="w", sha256=file_sha256(GOLDEN_WEIGHTS))
    monkeypatch.setitem(cast(dict[str, Bundled], BUNDLED), "w", golden)
    told: list[str] = []
    segmenter = Segmenter(GOLDEN_WEIGHTS, device="cpu", threads=1, on_warning=told.append)
    for _ in range(2):
        segmenter.segment(**FILES)
    assert told == ["weights w: for trying and testing, not for research results"]


def test_a_strict_segmenter_raises_what_the_command_line_prints() -> None:
    with pytest.raises(CaseError, match="strict: the warning labels-outside-brain is a failure"):
        Segmenter(GOLDEN_WEIGHTS, device="cpu", threads=1, strict=True).segment(**FILES)


def test_the_package_offers_its_names_without_loading_what_they_need() -> None:
    program = """
import sys
import drunet_cli
assert sorted(drunet_cli.__all__) == ["SegmentedCase", "Segmenter", "__version__"]
assert "numpy" not in sys.modules
drunet_cli.Segmenter
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        drunet_cli.Segmentor  # noqa: B018
