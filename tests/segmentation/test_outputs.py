"""The files of a case: in which order they appear, and that a run killed at any step is completed by the next.

SIGKILL itself strikes in tests/cli/test_cohort_interruption.py.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from drunet_cli.errors import OutputError
from drunet_cli.io.inputs import file_sha256
from drunet_cli.segmentation.cohort import CaseResult
from drunet_cli.segmentation.outputs import OutputFiles, read_sidecar
from drunet_cli.segmentation.settings import Settings
from tests.cli.small_cohort import write_case
from tests.segmentation.bright_engine import SETTINGS, outcomes_of
from tests.support import contents

WITH_FILES: Final = replace(SETTINGS, probabilities=True)
AGAIN: Final = replace(WITH_FILES, skip_existing=True)
OVERWRITING: Final = replace(WITH_FILES, overwrite=True)
OTHERWISE: Final = replace(SETTINGS, min_volume_ml=1000, uncertainty=True)  # an empty label map, and other files beside it
EVENTS: Final = ("link", "unlink", "replace", "rename", "fsync")  # steps of writing, between which a run may be killed


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("cohort") / "p1")


def run(case: Path, out: Path, settings: Settings) -> CaseResult:
    ((_, outcome),) = outcomes_of(case, out, settings)
    assert isinstance(outcome, CaseResult), outcome
    return outcome


class Run(NamedTuple):
    """A run that is killed at any step, after which it is repeated."""

    asked: Settings
    repeated: Settings
    before: Settings | None = None  # of the run of which the outputs are there already
    removed: tuple[str, ...] = ()  # from those outputs


RUNS: Final = {
    "a new case": Run(WITH_FILES, WITH_FILES),
    "a new case, resumed": Run(WITH_FILES, AGAIN),
    "outputs replaced": Run(OVERWRITING, OVERWRITING, before=OTHERWISE),
    "outputs replaced, resumed": Run(OVERWRITING, AGAIN, before=WITH_FILES),
    "files added": Run(AGAIN, AGAIN, before=replace(SETTINGS, uncertainty=True)),
    # The sidecar and one of the files that it names.
    "a leftover": Run(WITH_FILES, AGAIN, before=OTHERWISE, removed=("p1.nii.gz", "p1_entropy.nii.gz")),
    # The sidecar and the label map of a run that was killed before it wrote the files beside them.
    "an earlier version's": Run(AGAIN, AGAIN, before=WITH_FILES, removed=("p1_probabilities.nii.gz",)),
}


class Killed(BaseException):
    """The process is no more."""


class Disk:
    """Counts the steps that change a disk. From step `last` on nothing changes it any more, as after SIGKILL."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: float = float("inf")) -> None:
        self.n_steps = 0
        self._last = last
        for name in EVENTS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.n_steps += 1
            if self.n_steps > self._last:
                raise Killed
            return function(*arguments, **options)

        return counted


def written(out: Path) -> Mapping[str, Any]:
    """Every file; of the sidecar all but when it was written and how long it took."""
    found: dict[str, Any] = dict(contents(out))
    if "p1.json" in found:
        found["p1.json"] = {key: value for key, value in json.loads(found["p1.json"]).items() if key not in ("seconds", "time")}
    return found


def assert_complete_or_absent(out: Path, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """Every file is as it was before or as an undisturbed run leaves it, or not there; a label map that was there stays."""
    found = {name: content for name, content in contents(out).items() if not name.endswith((".tmp", ".claim"))}
    for name, content in found.items():
        assert name == "p1.json" or content in (before.get(name), after.get(name)), name
    assert "p1.nii.gz" in found or "p1.nii.gz" not in before
    document = read_sidecar(out / "p1.json")
    if found.get("p1.nii.gz") == after["p1.nii.gz"] != before.get("p1.nii.gz"):  # it was published last
        assert document is not None
        assert {"p1.nii.gz": document["output_sha256"], **document["files"]} == {
            name: file_sha256(out / name) for name in found.keys() - {"p1.json"}
        }


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_any_step_and_repeated_ends_as_an_undisturbed_one(name: str, case: Path, tmp_path: Path) -> None:
    asked, repeated, before, removed = RUNS[name]
    (tmp_path / "before/out").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path / "before")  # all runs write to a path of one name, which the sidecar holds
        if before is not None:
            run(case, Path("out"), before)
        for file in removed:
            Path("out", file).unlink()
    shutil.copytree(tmp_path / "before", tmp_path / "0")
    with pytest.MonkeyPatch.context() as monkeypatch:
        disk = Disk(monkeypatch)
        monkeypatch.chdir(tmp_path / "0")
        run(case, Path("out"), asked)
    undisturbed = written(tmp_path / "0/out")
    assert undisturbed.keys() >= {"p1.json", "p1.nii.gz", "p1_probabilities.nii.gz"}
    assert disk.n_steps >= 6
    for n_steps in range(disk.n_steps):
        folder = tmp_path / str(n_steps + 1)
        shutil.copytree(tmp_path / "before", folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(folder)
            Disk(monkeypatch, n_steps)
            with pytest.raises(Killed):
                run(case, Path("out"), asked)
        assert_complete_or_absent(folder / "out", contents(tmp_path / "before/out"), contents(tmp_path / "0/out"))
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(folder)
            if repeated is not WITH_FILES or not Path("out/p1.nii.gz").exists():  # else it is done, and would be refused
                run(case, Path("out"), repeated)
                assert written(Path("out")) == undisturbed, n_steps
            else:
                assert undisturbed.items() <= written(Path("out")).items()  # beside a temporary file, perhaps


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files in the order in which they appear, without claims, which go away again."""
    appeared: list[str] = []
    for name in ("link", "replace", "rename"):
        function = getattr(os, name)

        def remember(source: Any, target: Any, *, function: Callable[..., None] = function, **options: Any) -> None:
            function(source, target, **options)
            if not str(target).endswith(".claim"):
                appeared.append(Path(target).name)

        monkeypatch.setattr(os, name, remember)
    return appeared


@pytest.mark.parametrize("settings", [WITH_FILES, OVERWRITING], ids=["new", "replaced"])
def test_the_label_map_appears_last_after_its_sidecar_and_the_files_beside_it(
    settings: Settings, case: Path, tmp_path: Path, order: list[str]
) -> None:
    run(case, tmp_path, settings)
    assert order == ["p1.json", "p1_probabilities.nii.gz", "p1.nii.gz"]


def test_files_of_a_replaced_label_map_go_with_it(case: Path, tmp_path: Path) -> None:
    run(case, tmp_path, OTHERWISE)
    assert "p1_entropy.nii.gz" in contents(tmp_path)
    run(case, tmp_path, OVERWRITING)
    assert sorted(contents(tmp_path)) == ["p1.json", "p1.nii.gz", "p1_probabilities.nii.gz"]
    run(case, tmp_path, replace(OVERWRITING, sidecar=False, probabilities=False))
    assert sorted(contents(tmp_path)) == ["p1.nii.gz"]


def test_files_that_are_added_leave_the_others_where_they_are(case: Path, tmp_path: Path) -> None:
    before = run(case, tmp_path, replace(SETTINGS, uncertainty=True)).document
    kept = contents(tmp_path)
    after = run(case, tmp_path, AGAIN).document
    assert after["files"] == {**before["files"], "p1_probabilities.nii.gz": file_sha256(tmp_path / "p1_probabilities.nii.gz")}
    for name in kept.keys() - {"p1.json"}:
        assert contents(tmp_path)[name] == kept[name], name


def test_a_file_of_somebody_is_neither_taken_for_the_cases_own_nor_replaced(case: Path, tmp_path: Path) -> None:
    run(case, tmp_path, SETTINGS)
    (tmp_path / "p1_probabilities.nii.gz").write_text("mine")
    before = contents(tmp_path)
    ((_, outcome),) = outcomes_of(case, tmp_path, AGAIN)
    assert "p1_probabilities.nii.gz: exists already, and is not of p1.nii.gz as it is" in str(outcome)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_leftover_whose_files_somebody_changed_is_in_the_way(suffix: str, case: Path, tmp_path: Path) -> None:
    run(case, tmp_path, WITH_FILES)
    (tmp_path / "p1.nii.gz").unlink()
    files = OutputFiles(tmp_path / f"p1.{suffix}", WITH_FILES)
    files.check(())
    (tmp_path / f"p1_probabilities.{suffix}").write_text("mine")
    with pytest.raises(OutputError, match=r"p1_probabilities.* exists already"):
        files.check(())


def test_an_output_is_never_an_input(case: Path, tmp_path: Path) -> None:
    image = shutil.copyfile(case / "p1_t1.nii.gz", tmp_path / "p1_t1.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(image)
    (tmp_path / "again.nii.gz").hardlink_to(image)
    for name in ("p1_t1.nii.gz", "link.nii.gz", "again.nii.gz"):
        with pytest.raises(OutputError, match="is one of the inputs"):
            OutputFiles(tmp_path / name, OVERWRITING).check([image])


def test_names_follow_the_label_map() -> None:
    files = OutputFiles(
        Path("a/seg.v2.nii"), replace(SETTINGS, preview=True, viewer=True, probabilities=True, uncertainty=True)
    )
    assert files.sidecar == Path("a/seg.v2.json")
    assert [path.name for path in files.extras] == [
        "seg.v2_preview.png",
        "seg.v2_view.html",
        "seg.v2_probabilities.nii",
        *(f"seg.v2_{name}.nii" for name in ("unc_whole", "unc_core", "unc_enhance", "entropy")),
    ]
