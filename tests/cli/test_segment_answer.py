"""`drunet segment`: what comes after the network, means over several passes, and the files beside the label map."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drunet_cli.brats import Modality
from drunet_cli.cli.app import main
from drunet_cli.io.inputs import file_sha256
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import write_checkpoint
from tests.cli.small_cohort import write_cases
from tests.support import GOLDEN_IMAGES, GOLDEN_WEIGHTS, image_options, open_image

WEIGHTS = ["--weights", str(GOLDEN_WEIGHTS)]
UNCERTAINTY = ["seg_unc_whole.nii.gz", "seg_unc_core.nii.gz", "seg_unc_enhance.nii.gz"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def segment(*options: str, output: str = "seg.nii.gz", weights: list[str] = WEIGHTS) -> int:
    return main(["segment", *image_options(), *weights, "-o", output, "--quiet", *options])


def voxels(path: str) -> npt.NDArray[Any]:
    return np.asarray(open_image(path).dataobj)


def sidecar(path: str = "seg.json") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(path).read_text())
    return document


def files() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden weights with a head that prefers other classes."""
    checkpoint = open_weights(str(GOLDEN_WEIGHTS))
    state = {**checkpoint.state, "head.bias": checkpoint.state["head.bias"][::-1].copy() * 2}
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    write_checkpoint(path, state, checkpoint.metadata, overwrite=False)
    return path


def test_nothing_of_this_happens_unasked() -> None:
    assert segment() == 0
    assert files() == ["seg.json", "seg.nii.gz"]
    document = sidecar()
    assert document["files"] == {}
    assert "postprocessing" not in document
    expected = {"tta": "none", "mc_samples": 0, "dropout": None, "seed": None, "min_volume_ml": 0.0, "min_enhancing_ml": 0.0}
    assert expected.items() <= document["settings"].items()


def test_probabilities_are_those_that_the_labels_follow() -> None:
    assert segment("--probabilities") == 0
    assert files() == ["seg.json", "seg.nii.gz", "seg_probabilities.nii.gz"]
    image, flair = open_image("seg_probabilities.nii.gz"), open_image(GOLDEN_IMAGES[Modality.FLAIR])
    assert image.shape == (*flair.shape, 4)
    np.testing.assert_array_equal(image.affine, flair.affine)
    probabilities = np.asarray(image.dataobj)
    np.testing.assert_allclose(probabilities.sum(axis=3), 1, atol=2e-3)  # rounded to float16
    best = np.sort(probabilities, axis=3)
    clear = best[..., 3] - best[..., 2] > 2e-3
    assert clear.mean() > 0.9
    assert np.array_equal(np.array([0, 1, 2, 4])[probabilities.argmax(axis=3)][clear], voxels("seg.nii.gz")[clear])
    assert sidecar()["files"] == {"seg_probabilities.nii.gz": file_sha256(Path("seg_probabilities.nii.gz"))}


def test_uncertainty_is_written_under_the_names_of_brats_2020_and_can_be_scored(capsys: Captured) -> None:
    assert segment("--uncertainty", "--mc-samples", "2", "--dropout", "0.2", "--seed", "3") == 0
    assert files() == sorted(["seg.json", "seg.nii.gz", "seg_entropy.nii.gz", *UNCERTAINTY])
    for name in UNCERTAINTY:
        image = open_image(name)
        assert image.get_data_dtype() == np.uint8
        assert 0 < np.asarray(image.dataobj).max() <= 100
    assert 0 < voxels("seg_entropy.nii.gz").max() <= np.log(4) + 1e-6
    assert {"mc_samples": 2, "dropout": {"rate": 0.2, "source": "given"}, "seed": 3}.items() <= sidecar()["settings"].items()
    capsys.readouterr()
    shutil.copy("seg.nii.gz", "truth.nii.gz")
    assert main(["evaluate", "seg.nii.gz", "truth.nii.gz", "--uncertainty", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["regions"]["WT"]["uncertainty"]
    assert scores["dice_auc"] == 1.0


def test_samples_depend_on_the_seed_and_not_on_the_batch() -> None:
    options = ["--probabilities", "--mc-samples", "2", "--dropout", "0.3"]
    for name, more in {"a": ["--batch-size", "1"], "b": ["--batch-size", "4"], "c": ["--seed", "1"]}.items():
        assert segment(*options, *more, output=f"{name}.nii.gz") == 0
    a, b, c = (voxels(f"{name}_probabilities.nii.gz") for name in "abc")
    np.testing.assert_allclose(a, b, atol=1e-3)  # float16
    assert np.abs(a - c).max() > 0.01


def test_flips_and_several_weights_are_recorded_and_change_the_answer(other_weights: Path) -> None:
    assert segment(output="plain.nii.gz") == 0
    assert segment("--tta", "flips", output="flips.nii.gz") == 0
    assert segment("--weights", str(other_weights), output="both.nii.gz") == 0
    assert sidecar("flips.json")["settings"]["tta"] == "flips"
    assert [each["name"] for each in sidecar("both.json")["weights"]] == ["keras_base1", "keras_base1"]
    assert len({each["sha256"] for each in sidecar("both.json")["weights"]}) == 2
    plain = voxels("plain.nii.gz")
    assert (voxels("flips.nii.gz") != plain).any()
    assert (voxels("both.nii.gz") != plain).any()


def test_small_enhancing_tumour_becomes_necrosis_and_the_sidecar_says_so() -> None:
    assert segment(output="plain.nii.gz") == 0
    assert segment("--min-enhancing", "1000") == 0
    plain, after = voxels("plain.nii.gz"), voxels("seg.nii.gz")
    assert np.array_equal(after, np.where(plain == 4, 1, plain))
    document = sidecar()
    assert document["postprocessing"]["voxels_enhancing_to_ncr"] == np.count_nonzero(plain == 4)
    assert document["voxels"]["ET"] == 0
    assert document["settings"]["min_enhancing_ml"] == 1000


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--mc-samples", "2"],
            "--mc-samples N: the weights keras_base1 do not record their dropout rate; name one by --dropout P",
        ),
        (["--dropout", "0.2"], "--dropout P and --seed N are for samples; give --mc-samples N too"),
        (
            ["--mc-samples", "2", "--dropout", "0.2", "--engine", "onnxruntime"],
            "--mc-samples N needs dropout, which --engine onnxruntime has not; use --engine torch",
        ),
        (["--mc-samples", "2", "--dropout", "0"], "--dropout 0: samples differ only with a rate above 0"),
        (["--min-volume", "-1"], "Invalid value for '--min-volume'"),
        (["--tta", "rotations"], "Invalid value for '--tta'"),
    ],
)
def test_what_makes_no_sense_is_misuse(options: list[str], line: str, capsys: Captured) -> None:
    assert segment(*options) == 2
    assert capsys.readouterr().err.startswith(f"Error: {line}")
    assert files() == []


def test_weights_trained_on_different_windows_need_a_choice(other_weights: Path, tmp_path: Path, capsys: Captured) -> None:
    checkpoint = open_weights(str(other_weights))
    metadata = type(checkpoint.metadata)(name="windowed", base_width=1, bn_epsilon=1e-3, window="auto")
    write_checkpoint(tmp_path / "windowed.safetensors", checkpoint.state, metadata, overwrite=False)
    both = [*WEIGHTS, "--weights", "windowed.safetensors"]
    assert segment(weights=both) == 2
    assert "choose --window full or --window auto" in capsys.readouterr().err
    assert segment("--window", "auto", weights=both) == 0


class Cohort:
    """Two small cases, segmented again and again into one folder; says which were left out."""

    def __init__(self, folder: Path, capsys: Captured) -> None:
        write_cases(folder / "cohort", 2)
        self._capsys = capsys

    def left_out(self, *options: str, code: int = 0) -> list[bool | str]:
        self._capsys.readouterr()
        run = ["segment", "cohort", *WEIGHTS, "-o", "out", "--skip-existing", "--json", "--quiet"]
        assert main([*run, *options]) == code
        documents = [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]
        return [document.get("error") or document.get("left_out", False) for document in documents]


@pytest.fixture
def cohort(tmp_path: Path, capsys: Captured) -> Cohort:
    return Cohort(tmp_path, capsys)


def test_a_case_is_left_out_only_with_every_file_that_is_asked_for(cohort: Cohort) -> None:
    assert cohort.left_out() == [False, False]
    before = Path("out/case_0.nii.gz").read_bytes()
    assert cohort.left_out("--preview") == [False, False]  # the pictures are missing
    assert cohort.left_out("--preview") == [True, True]
    Path("out/case_1_preview.png").unlink()
    assert cohort.left_out("--preview") == [True, False]
    assert cohort.left_out() == [True, True]
    assert Path("out/case_0.nii.gz").read_bytes() == before
    assert open_image("out/case_1.nii.gz").shape == (24, 20, 6)


@pytest.mark.parametrize(
    "options",
    [
        ["--weights", "copy.h5"],
        ["--tta", "flips"],
        ["--mc-samples", "2", "--dropout", "0.3"],
        ["--min-volume", "0.1"],
    ],
    ids=lambda options: options[0],
)
def test_whatever_was_asked_for_is_left_out_again_and_nothing_else_is(options: list[str], cohort: Cohort) -> None:
    shutil.copy(GOLDEN_WEIGHTS, "copy.h5")
    assert cohort.left_out(*options) == [False, False]
    assert cohort.left_out(*options) == [True, True]
    assert all("was made with" in str(error) for error in cohort.left_out(code=1))
