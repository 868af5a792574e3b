"""Cross-validation by the command line: folds that are trained, left out, resumed and scored, and the ensemble of them."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from drunet_cli.cli.app import main
from drunet_cli.errors import Terminated
from drunet_cli.io.inputs import sha256_of
from drunet_cli.segmentation.outputs import read_sidecar
from drunet_cli.training import loop
from drunet_cli.training.loop import Training
from drunet_cli.training.recipe import Recipe, changed, recipe_toml
from drunet_cli.training.run_folder import RunFolder
from tests.conversion.small_cases import convert, small_case
from tests.support import contents
from tests.training.small_runs import ONE_STEP, SMALL, assert_equal_tensors, merge

pytestmark = pytest.mark.usefixtures("shallow", "no_curves")

NAMES: Final = ("a_20190301", "a_20200301", "b")
Outcome = tuple[int, str, str]
Train = Callable[..., Outcome]


@pytest.fixture
def train(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """`drunet train` in this process, in a copy of the folder that holds a finished cross-validation, `cv`, of two folds."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "copy"))
    capsys.readouterr()

    def run(*words: str) -> Outcome:
        return command(*words), *capsys.readouterr()

    return run


def command(*words: str) -> int:
    options = ["--config", "config.toml", "--device", "cpu", "--threads", "1", "--jobs", "1"]
    return main(["train", "cases", "-o", "cv", *options, *words, *([] if "--folds" in words else ["--folds", "2"])])


@pytest.fixture(scope="module")
def finished(shallow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds, trained by two jobs, the second of which scores."""
    folder = tmp_path_factory.mktemp("folds")
    for seed, name in enumerate(NAMES):
        small_case(folder / "cases", name=name, seed=seed)
    (folder / "config.toml").write_text(recipe_toml(changed(Recipe(), merge(SMALL, ONE_STEP), where="")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(loop, "draw_curves", lambda *_: False)
        assert command("--fold", "2", "--quiet") == 0
        assert not list(folder.glob("cv/*.csv"))
        assert command("--fold", "1", "--quiet") == 0
    return folder


@pytest.mark.slow
def test_scores_of_all_cases_are_those_of_evaluate(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv, table = finished / "cv", tmp_path / "scores.csv"
    words = [str(cv / "out_of_fold"), str(finished / "cases"), "--csv", str(table), "--jobs", "1"]
    assert main(["evaluate", *words]) == 0
    assert (cv / "scores.csv").read_bytes() == table.read_bytes()
    printed = capsys.readouterr().out
    header, *rows = (line.split(",") for line in (cv / "statistics.csv").read_text().splitlines())
    first = dict(zip(header, rows[0], strict=True))
    assert (first["region"], first["score"], first["n"], len(rows)) == ("WT", "dice", "3", 21)
    mean, low, high = (float(first[name]) for name in ("mean", "low", "high"))
    assert [*printed.splitlines()[2].split()[:3], f"{low:.3f} to {high:.3f}" in printed] == ["WT", "Dice", f"{mean:.3f}", True]


def test_every_case_is_segmented_by_the_last_weights_of_the_fold_that_held_it_out(finished: Path) -> None:
    cv = finished / "cv"
    folds = json.loads((cv / "folds.json").read_text())["folds"]
    assert sorted(folds) == [["a_20190301", "a_20200301"], ["b"]]  # one patient, and another
    for number, held_out in enumerate(folds, start=1):
        run = RunFolder(cv / f"fold_{number}")
        assert list(run.read()[1].validation) == held_out
        for name in held_out:
            document = read_sidecar(cv / "out_of_fold" / f"{name}.json")
            assert document is not None
            assert (document["weights"]["name"], document["weights"]["sha256"]) == (
                f"cv_fold_{number}",
                sha256_of(run.last),
            )
    assert {path.stem for path in (cv / "out_of_fold").glob("*.json")} == set(NAMES)


def test_weights_that_are_a_cross_validation_are_all_its_folds(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv = finished / "cv"
    for number, weights in enumerate([[cv], [cv / "fold_1" / "last.safetensors", cv / "fold_2" / "last.safetensors"]]):
        options = [word for each in weights for word in ("--weights", str(each))]
        assert main(["segment", str(finished / "cases" / "b"), "-o", str(tmp_path / f"{number}.nii.gz"), *options]) == 0
    documents = [read_sidecar(tmp_path / f"{number}.json") for number in range(2)]
    assert [[each["name"] for each in document["weights"]] for document in documents if document] == [
        ["cv_fold_1", "cv_fold_2"]
    ] * 2
    assert (tmp_path / "0.nii.gz").read_bytes() == (tmp_path / "1.nii.gz").read_bytes()
    capsys.readouterr()
    for words in (["export", "-o", str(tmp_path / "x.onnx"), "--weights"], ["weights", "info"]):
        assert main([*words, str(cv)]) == 4
        assert f"{cv}: is a folder of several weights; give one of them: {cv}/fold_1/last" in capsys.readouterr().err


def test_finished_cross_validation_has_nothing_left_to_do(train: Train) -> None:
    before = contents(Path())
    code, out, error = train("--resume")
    assert (code, out) == (0, "cv/scores.csv\n")
    assert error == "fold 1: is trained, left out\nfold 2: is trained, left out\ncv/scores.csv: is there already\n"
    assert contents(Path()) == before


def test_dry_run_says_what_each_fold_would_do_and_writes_nothing(train: Train) -> None:
    before = contents(Path())
    code, out, _ = train("--resume", "--dry-run", "--json")
    *cases, first, second = (json.loads(line) for line in out.splitlines())
    assert (code, {case["case"]: case["fold"] for case in cases}) == (0, {"a_20190301": 1, "a_20200301": 1, "b": 2})
    assert [
        (fold["fold"], fold["finished"], fold["train"], fold["validation"], fold["steps"], fold["run"])
        for fold in (first, second)
    ] == [
        (1, True, 1, 2, 1, "cv/fold_1"),
        (2, True, 2, 1, 1, "cv/fold_2"),
    ]
    code, out, error = train("--overwrite", "--dry-run", "--fold", "2")
    assert (code, out.splitlines()[0].split()) == (0, ["CASE", "FOLD", "IN", "STORE", "SLICES", "WITH", "TUMOUR"])
    assert error.startswith("fold 2: would train recipe modern, base width 1: 1 epoch, 1 step of 2 slices; 2 cases to learn")
    assert contents(Path()) == before


@pytest.mark.slow
def test_fold_that_is_lost_is_trained_again_and_scored_with_the_others(train: Train, finished: Path) -> None:
    shutil.rmtree("cv/fold_2")
    sidecar = Path("cv/out_of_fold/b.json")  # as if the lost weights had been others
    sidecar.write_text(sidecar.read_text().replace(sha256_of(finished / "cv/fold_2/last.safetensors"), "0" * 64))
    code, out, error = train("--resume", "--json")
    *_, epoch, files, scores = (json.loads(line) for line in out.splitlines())
    assert (code, epoch["fold"], files["fold"], files["last"]) == (0, 2, 2, "cv/fold_2/last.safetensors")
    assert scores == {
        name: f"cv/{name}.{end}" for name, end in (("scores", "csv"), ("statistics", "csv"), ("ensemble", "json"))
    }
    assert "fold 1: is trained, left out\nfold 2, epoch 1/1: loss " in error
    told = [line for line in error.splitlines() if " case" in line][-3:]
    assert told[0] == "fold 2: 1 held-out case segmented into cv/out_of_fold"
    assert told[1] == "Scoring 3 cases; the ensemble can be used already"
    assert told[2].startswith("3 cases, each segmented by the network")
    # As trained after the other fold as alone.
    assert_equal_tensors(Path("cv/fold_2/state.safetensors"), finished / "cv/fold_2/state.safetensors")
    assert Path("cv/scores.csv").read_bytes() == (finished / "cv/scores.csv").read_bytes()


STOPPED: Final = "Stopped; what is done is saved. To continue: the same command with --resume"


def test_cross_validation_that_a_signal_stops_while_it_segments_goes_on(
    train: Train, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> Any:
        raise Terminated

    shutil.rmtree("cv/out_of_fold")
    with monkeypatch.context() as patch:
        patch.setattr("drunet_cli.segmentation.pipeline.segment", stop)
        code, _, error = train("--resume")
    assert (code, error.splitlines()[-1]) == (143, STOPPED)
    assert {path.name for path in Path("cv").iterdir() if path.is_file()} == {"folds.json"}
    assert main(["segment", "cases", "-o", "results", "--weights", "cv"]) == 4
    assert train("--resume")[0] == 0
    assert Path("cv/scores.csv").read_bytes() == (finished / "cv/scores.csv").read_bytes()


def test_label_map_that_somebody_has_changed_is_not_replaced(train: Train) -> None:
    path = Path("cv/out_of_fold/b.nii.gz")
    shutil.copyfile(next(Path("cases/b").glob("*seg.nii*")), path)
    content = path.read_bytes()
    code, _, error = train("--resume")
    assert (code, "b.nii.gz: has been changed since drunet wrote it" in error) == (6, True)
    assert path.read_bytes() == content


def add_case() -> None:
    small_case(Path("cases"), name="c", seed=7)


def remove_case() -> None:
    shutil.rmtree("cases/b")
    add_case()


def change_labels() -> None:
    lose_fold()
    small_case(Path("cases"), name="b", seed=7)


def lose_fold() -> None:
    shutil.rmtree("cv/fold_2")


REFUSED: Final[dict[str, tuple[Callable[[], object], str, int, str]]] = {
    "another case": (add_case, "--resume", 3, "cv/folds.json: the cross-validation that is there lacks c; "),
    "a case is missing": (remove_case, "--resume", 3, "has b, not among the cases given; "),
    "other labels": (change_labels, "--resume", 3, "b: its files are not those that were trained on"),
    "another number": (int, "--resume --folds 3", 2, "--folds 3: there are fewer patients than that (2 in 3 cases)"),
    "another seed": (int, "--resume --seed 1 --fold 1", 3, "has other cases in its folds (its seed is 0, now 1)"),
    "another recipe": (int, "--overwrite --fold 1 --steps 2", 2, "cv/fold_2/config.toml: this fold has length.steps: 1, not 2"),
    "weights to begin with": (
        lose_fold,
        "--resume --init cv/fold_1/last.safetensors",
        2,
        "cv/fold_1: this fold began with new weights; leave --init out",
    ),
    "neither": (int, "", 6, "cv/fold_1: holds a training already; --resume continues it, --overwrite"),
}


@pytest.mark.parametrize(("change", "words", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_cross_validation_does_not_go_on_with_other_cases_or_settings(
    change: Callable[[], object], words: str, code: int, message: str, train: Train
) -> None:
    change()
    before = contents(Path("cv"))
    found, out, error = train(*words.split())
    assert (found, out, message in error) == (code, "", True), error
    assert {name for name, content in contents(Path("cv")).items() if before.get(name) != content} == set()


@pytest.mark.usefixtures("train")
def test_slices_without_images_and_folders_of_the_other_kind_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    convert(small_case(Path("nifti"), name="d", seed=7), Path("png"))
    options = ["--config", "config.toml", "--device", "cpu"]
    for words, code, message in (
        (["png", "-o", "x", "--folds", "2"], 3, "png: d is PNG slices; a cross-validation writes label maps"),
        (["cases", "-o", "cv"], 6, "cv: holds a cross-validation; give --folds to go on with it"),
        (["cases", "-o", "cv/fold_1", "--folds", "2"], 6, "cv/fold_1: holds a training of its own; name another folder"),
    ):
        assert main(["train", *words, *options]) == code
        assert message in capsys.readouterr().err


def test_overwriting_all_folds_leaves_nothing_of_the_earlier_ones(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Training) -> bool:
        signal.raise_signal(signal.SIGINT)
        return not self.should_stop()

    shutil.rmtree("cases/b")
    small_case(Path("cases"), name="c", seed=7)
    Path("cv/folds.json").write_text("{")
    assert train("--resume")[0] == 3  # the damaged file is named; overwriting begins anew
    monkeypatch.setattr(Training, "run_to_end", stop)
    code, _, error = train("--overwrite")
    assert (code, error.splitlines()[-1]) == (130, STOPPED)
    left = {name for name in contents(Path("cv")) if not name.startswith(("slices/", "fold_1/"))}
    assert left == {"folds.json"}
    assert {path.name for path in Path("cv/fold_1").iterdir()} - {"tensorboard"} == {
        *("config.toml", "run.json", "split.json", "state.safetensors")
    }
