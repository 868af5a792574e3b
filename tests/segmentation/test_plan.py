"""The plan of a run: what there is of a case and what is asked for decide what happens to it."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pytest

from drunet_cli.brats import CHANNELS, Labels, Modality
from drunet_cli.errors import CaseError, DrunetError, MisuseError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import find_cases
from drunet_cli.network.engine import WindowMode
from drunet_cli.segmentation.cohort import CaseResult, segment_cases
from drunet_cli.segmentation.outputs import OutputFiles
from drunet_cli.segmentation.plan import RunPlan, missing_weights, same_document
from drunet_cli.segmentation.settings import Settings
from tests.cli.small_cohort import write_case, write_cases
from tests.segmentation.bright_engine import CHECKPOINT, SETTINGS, BrightEnsemble, outcomes_of, plan_of
from tests.support import GOLDEN_WEIGHTS, contents, open_image, touch

FOREIGN_JSON: Final = ["{}", "[]", "null", "1", '"text"', "{", "", '{"schema": "other/1"}', '{"schema": 1}', "[" * 100_000]
WITH_FILES: Final = replace(SETTINGS, probabilities=True)


@dataclass(frozen=True)
class Made:
    """A case and its complete outputs."""

    case: Case
    out: Path

    @property
    def label_map(self) -> Path:
        return self.out / "p1.nii.gz"

    @property
    def sidecar(self) -> Path:
        return self.out / "p1.json"

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.sidecar.read_text())
        return document

    def record(self, document: dict[str, Any]) -> None:
        """Put another object into the sidecar."""
        self.sidecar.write_text(json.dumps(document))

    def same(self, settings: Settings = SETTINGS, case: Case | None = None) -> dict[str, Any] | None:
        """As a second run sees it; which never changes anything."""
        before = contents(self.out)
        try:
            return same_document(case or self.case, OutputFiles(self.label_map, settings), BrightEnsemble(settings))
        finally:
            assert contents(self.out) == before

    def assert_refused(self, match: str, settings: Settings = SETTINGS, case: Case | None = None) -> None:
        """In one line, with the remedy."""
        with pytest.raises(OutputError, match=match) as caught:
            self.same(settings, case)
        assert str(self.label_map) in str(caught.value)
        assert re.search("; (move it away .* and|give --overwrite to) segment the case again$", str(caught.value))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case in p1, and its outputs in out."""
    folder = tmp_path_factory.mktemp("template")
    ((_, outcome),) = outcomes_of(write_case(folder / "p1"), folder / "out", WITH_FILES)
    assert isinstance(outcome, CaseResult)
    return folder


@pytest.fixture
def made(template: Path, tmp_path: Path) -> Made:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)  # with the times of their last change
    sidecar = tmp_path / "out/p1.json"
    sidecar.write_text(sidecar.read_text().replace(str(template), str(tmp_path)))
    return Made(find_cases([tmp_path / "p1"]).cases[0], tmp_path / "out")


def change(path: Path) -> None:
    """Other bytes, of the same number, at the same time."""
    stamp = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


# What is there x what is asked for -> what happens


def only(*kept: str) -> Callable[[Path], None]:
    """Keep these of the three complete outputs."""
    names = {"label map": "p1.nii.gz", "sidecar": "p1.json", "extra": "p1_probabilities.nii.gz"}

    def remove(out: Path) -> None:
        for name in names.keys() - set(kept):
            (out / names[name]).unlink()

    return remove


def foreign_json(*kept: str) -> Callable[[Path], None]:
    def put(out: Path) -> None:
        only(*kept)(out)
        (out / "p1.json").write_text('{"mine": true}')

    return put


def changed_extra(out: Path) -> None:
    only("sidecar", "extra")(out)
    (out / "p1_probabilities.nii.gz").write_bytes(b"mine")


def uncompressed(out: Path) -> None:
    only("label map", "sidecar")(out)
    (out / "p1.nii.gz").rename(out / "p1.nii")


def folder(out: Path) -> None:
    only("sidecar")(out)
    (out / "p1.nii.gz").mkdir()


def dangling(out: Path) -> None:
    only()(out)
    (out / "p1.nii.gz").symlink_to("nowhere")


# For each: its state; what a plain run, --skip-existing and --overwrite plan, and what comes of it: done, left out, failed (in
# that case alone), or stopped (before the first case).
TABLE: Final[dict[str, tuple[Callable[[Path], None], str, tuple[str, str], tuple[str, str], tuple[str, str]]]] = {
    "nothing": (only(), "new", ("segment", "done"), ("segment", "done"), ("segment", "done")),
    "all": (
        only("label map", "sidecar", "extra"),
        "segmented",
        ("refuse", "stopped"),
        ("verify and leave out", "left out"),
        ("overwrite", "done"),
    ),
    "no extra": (
        only("label map", "sidecar"),
        "segmented",
        ("refuse", "stopped"),
        ("add missing files", "done"),
        ("overwrite", "done"),
    ),
    "a sidecar alone": (only("sidecar"), "unfinished", ("segment", "done"), ("segment", "done"), ("segment", "done")),
    "no label map": (only("sidecar", "extra"), "unfinished", ("segment", "done"), ("segment", "done"), ("segment", "done")),
    "a changed extra": (changed_extra, "unfinished", ("refuse", "stopped"), ("fail", "failed"), ("segment", "done")),
    "a label map alone": (only("label map"), "foreign file", ("refuse", "stopped"), ("fail", "failed"), ("overwrite", "done")),
    "an extra alone": (only("extra"), "new", ("refuse", "stopped"), ("fail", "failed"), ("segment", "done")),
    "a json file": (foreign_json(), "foreign file", ("refuse", "stopped"), ("fail", "failed"), ("overwrite", "done")),
    "a label map and a json file": (
        foreign_json("label map"),
        "foreign file",
        ("refuse", "stopped"),
        ("fail", "failed"),
        ("overwrite", "done"),
    ),
    "the sidecar of p1.nii": (uncompressed, "foreign file", ("refuse", "stopped"), ("fail", "failed"), ("overwrite", "done")),
    "a folder": (folder, "segmented", ("refuse", "stopped"), ("add missing files", "failed"), ("overwrite", "stopped")),
    "a dangling link": (dangling, "foreign file", ("refuse", "stopped"), ("fail", "failed"), ("overwrite", "done")),
}
ASKED: Final = (WITH_FILES, replace(WITH_FILES, skip_existing=True), replace(WITH_FILES, overwrite=True))


def happened(plan: RunPlan, ensemble: BrightEnsemble) -> str:
    if plan.stop is not None:
        assert isinstance(plan.stop, OutputError)
        return "stopped"
    ((_, outcome),) = segment_cases(plan, ensemble, on_warning=lambda _: None)
    if isinstance(outcome, DrunetError):
        return "failed"
    return "left out" if outcome.left_out else "done"


@pytest.mark.parametrize("number", range(3), ids=["plain", "skip-existing", "overwrite"])
@pytest.mark.parametrize("there", TABLE)
def test_what_is_there_and_what_is_asked_for_decide(there: str, number: int, made: Made, tmp_path: Path) -> None:
    put, state, *expected = TABLE[there]
    put(made.out)
    before = contents(made.out)
    ensemble = BrightEnsemble(ASKED[number])
    plan = plan_of(tmp_path / "p1", made.out, ensemble)
    assert contents(made.out) == before
    (planned,) = plan.cases
    assert (planned.state, planned.action) == (state, expected[number][0])
    assert happened(plan, ensemble) == expected[number][1]
    if expected[number][1] != "done":
        assert contents(made.out) == before
    else:
        assert {"p1.json", "p1.nii.gz", "p1_probabilities.nii.gz"} <= contents(made.out).keys()
        assert made.same(WITH_FILES) == made.document


def test_a_json_file_of_others_is_never_taken_for_a_sidecar(made: Made) -> None:
    for content in FOREIGN_JSON:
        made.sidecar.write_text(content)
        made.assert_refused("exists already, without a sidecar")
    made.label_map.unlink()
    for content in FOREIGN_JSON:
        made.sidecar.write_text(content)
        assert OutputFiles(made.label_map, SETTINGS).state() == "foreign file", content
        assert OutputFiles(made.label_map, replace(SETTINGS, sidecar=False)).state() == "new", content


def test_a_label_map_without_sidecar_does_not_lie_beside_the_sidecar_of_another(made: Made) -> None:
    files = OutputFiles(made.out / "p1.nii", replace(SETTINGS, sidecar=False))
    assert files.state() == "foreign file"
    with pytest.raises(OutputError, match=r"p1.json: exists already.*it would be the sidecar of p1.nii"):
        files.check(())


def test_a_run_of_many_cases_is_refused_with_the_first_and_the_number_of_the_others(tmp_path: Path) -> None:
    write_cases(tmp_path / "cohort", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/case_1.json").write_text("{}")
    ensemble = BrightEnsemble()
    stop = plan_of(tmp_path / "cohort", tmp_path / "out", ensemble).stop
    remedy = "give --skip-existing to leave out what is complete, or --overwrite to replace all of it"
    assert str(stop) == f"{tmp_path}/out/case_1.json: exists already; {remedy}"
    (tmp_path / "out/case_2.nii.gz").write_text("")
    stop = plan_of(tmp_path / "cohort", tmp_path / "out", ensemble).stop
    assert str(stop) == f"{tmp_path}/out/case_1.json: exists already, and the outputs of 1 more of 3 cases; {remedy}"


def test_a_file_that_two_cases_would_write_is_refused_whoever_may_overwrite(tmp_path: Path) -> None:
    for name in ("p1", "p1_entropy"):
        write_case(tmp_path / "cohort" / name)
    settings = replace(SETTINGS, uncertainty=True, overwrite=True)
    stop = plan_of(tmp_path / "cohort", tmp_path / "out", BrightEnsemble(settings)).stop
    alike = "of the case p1 and of p1_entropy alike; give one of them another name"
    assert str(stop) == f"{tmp_path}/out/p1_entropy.nii.gz: {alike}"
    assert plan_of(tmp_path / "cohort", tmp_path / "out", BrightEnsemble()).stop is None


def test_weights_that_leave_a_setting_open_stop_the_plan_and_the_dry_run(tmp_path: Path) -> None:
    weights = ("compact", str(GOLDEN_WEIGHTS))
    with pytest.raises(MisuseError, match="trained on different windows"):
        missing_weights(Settings(weights=weights))
    assert missing_weights(Settings(weights=weights, window=WindowMode.FULL)) == []
    with pytest.raises(MisuseError, match="do not record their dropout rate"):
        missing_weights(Settings(weights=weights[::-1], window=WindowMode.FULL, mc_samples=2))
    with pytest.raises(MisuseError, match="the weights brats2020 recommend none"):  # before a download, which is large
        missing_weights(Settings(recommended_postprocessing=True))
    write_case(tmp_path / "p1")
    stop = plan_of(tmp_path / "p1", tmp_path / "out", BrightEnsemble(Settings(recommended_postprocessing=True))).stop
    assert "the weights brats2020 recommend none" in str(stop)


def test_weights_that_are_given_twice_are_misuse_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("")
    (tmp_path / "b.h5").symlink_to("a.h5")
    names = (f"{tmp_path}/a.h5", f"{tmp_path}/b.h5")
    with pytest.raises(MisuseError, match=f"weights={names[1]}: the same file as weights={names[0]}; give it once"):
        plan_of(write_case(tmp_path / "p1"), tmp_path / "out", BrightEnsemble(replace(SETTINGS, weights=names)))


# Whether a label map is the one that would be made


def test_a_label_map_of_the_same_files_and_settings_is_the_same(made: Made, tmp_path: Path) -> None:
    assert made.same() == made.document
    for path in made.case.images.values():
        touch(path)
    assert made.same() == made.document
    shutil.copytree(tmp_path / "p1", tmp_path / "moved/p1")
    moved = {name: tmp_path / "moved/p1" / path.name for name, path in made.case.images.items()}
    assert made.same(case=replace(made.case, images=moved)) == made.document
    content = made.label_map.read_bytes()
    made.label_map.unlink()
    made.label_map.write_bytes(content)
    made.record({**made.document, "reviewed_by": "A. B.", "settings": {**made.document["settings"], "batch_size": 99}})
    assert made.same() == made.document


def test_inputs_of_the_same_path_size_and_time_are_not_read(made: Made) -> None:
    change(made.case.images[Modality.T2])
    assert made.same() == made.document


@pytest.mark.parametrize("modality", CHANNELS)
def test_one_changed_input_is_refused_by_its_name(modality: Modality, made: Made) -> None:
    path = made.case.images[modality]
    change(path)
    touch(path)
    made.assert_refused(f"was made of another file than {path} is now")
    path.unlink()
    with pytest.raises(CaseError, match=r"cannot be read: No such file"):
        made.same()


def test_swapped_inputs_of_one_size_and_time_are_refused(made: Made) -> None:
    # As an archive unpacks them: one time of change for all; uncompressed they are of one size.
    document, images = made.document, made.case.images
    for entry in document["inputs"].values():
        entry.update(n_bytes=1000, mtime_ns=10**18)
    made.record(document)
    for path in images.values():
        path.write_bytes(path.read_bytes()[:1000].ljust(1000, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    swapped = {**images, Modality.T1: images[Modality.T2], Modality.T2: images[Modality.T1]}
    made.assert_refused("was made of another file", case=replace(made.case, images=swapped))


@pytest.mark.parametrize("name", sorted(BrightEnsemble(SETTINGS).compared))
def test_a_label_map_with_any_other_recorded_setting_is_refused(name: str, made: Made) -> None:
    document = made.document
    document["settings"][name] = "other"
    made.record(document)
    made.assert_refused(f"was made with {name} other, now ")


def test_a_label_map_of_a_version_that_did_not_know_a_setting_is_the_same_where_that_is_off(made: Made) -> None:
    document = made.document
    del document["settings"]["within_brain"]
    made.record(document)
    assert made.same() is not None
    made.assert_refused("was made with within_brain False, now True", replace(SETTINGS, within_brain=True))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"labels": Labels.BRATS2023}, "with other label values"),
        ({"precision": "bfloat16"}, "with precision float32, now bfloat16"),
        ({"window": "full"}, "with window auto, now full"),
        ({"flips": True}, "with tta none, now flips"),
        ({"min_volume_ml": 0.5}, "with min_volume_ml 0.0, now 0.5"),
        ({"engine": "onnxruntime"}, "with engine torch, now onnxruntime"),
    ],
    ids=str,
)
def test_a_label_map_made_otherwise_is_refused_with_what_differs(asked: dict[str, Any], reason: str, made: Made) -> None:
    from drunet_cli.network.engine import EngineName, Precision, WindowMode

    kinds: dict[str, Callable[[Any], Any]] = {"precision": Precision, "window": WindowMode, "engine": EngineName}
    settings = replace(SETTINGS, **{name: kinds.get(name, lambda word: word)(value) for name, value in asked.items()})
    made.assert_refused(f"was made {reason}", settings)


def test_a_label_map_of_other_images_is_never_advised_to_be_overwritten(made: Made, tmp_path: Path) -> None:
    other = find_cases([write_case(tmp_path / "other", seed=7, name="p1")]).cases[0]
    with pytest.raises(OutputError) as caught:
        made.same(case=other)
    assert str(caught.value) == (
        f"{made.label_map}: is the label map of other images, {made.case.images[Modality.FLAIR]} and so on; name another OUT, "
        "or name the case by its files"
    )


def test_a_label_map_of_other_weights_is_refused(made: Made) -> None:
    document = made.document
    document["weights"]["sha256"] = "0" * 64
    made.record(document)
    made.assert_refused(r"was made with other weights: bright, SHA-256 000000000000\.\.\.")
    assert CHECKPOINT.sha256 != "0" * 64


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-30], "is truncated"),
        (lambda content: b"", "is empty"),
        (lambda content: bytes(len(content)), "is not a NIfTI file"),
        (lambda content: content[:100] + bytes([content[100] ^ 255]) + content[101:], "corrupt"),
    ],
    ids=["truncated", "empty", "zeros", "a byte"],
)
def test_a_damaged_label_map_is_refused(damage: Callable[[bytes], bytes], reason: str, made: Made) -> None:
    made.label_map.write_bytes(damage(made.label_map.read_bytes()))
    made.assert_refused(f"{reason}[^;]*; give --overwrite")  # and not to export or download anything


def test_a_label_map_that_was_edited_is_refused(made: Made) -> None:
    image = open_image(made.label_map)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 4
    nib.Nifti1Image(voxels, image.affine, image.header).to_filename(made.label_map)
    made.assert_refused("has been changed since drunet wrote it; move it away to keep the changes")


GARBAGE: Final[list[object]] = [
    None,
    7,
    "text",
    [],
    ["text"],
    {},
    {"name": None, "sha256": []},
    {"name": "bright", "sha256": 7},
]


@pytest.mark.parametrize("key", ["case", "volumes_ml", "weights", "inputs", "device", "settings", "seconds", "labels"])
def test_a_sidecar_that_lacks_something_or_holds_garbage_is_refused(key: str, made: Made) -> None:
    document = made.document
    made.record({name: value for name, value in document.items() if name != key})
    made.assert_refused("was made ")
    for value in GARBAGE:
        if (key, value) not in [("case", "text"), ("device", "text"), ("seconds", {})]:  # which are of the right kind
            made.record({**document, key: value})
            made.assert_refused("was made ")


@pytest.mark.parametrize("key", ["path", "n_bytes", "mtime_ns", "sha256"])
def test_garbage_about_an_input_never_makes_another_file_pass(key: str, made: Made) -> None:
    change(made.case.images[Modality.T2])
    touch(made.case.images[Modality.T2])
    values: list[object] = [None, "text", [], {}, 10**30, -1.5]
    for value in values:
        document = made.document
        document["inputs"]["t2"][key] = value
        made.record(document)
        made.assert_refused("was made of another file")
