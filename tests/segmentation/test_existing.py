"""What is taken for a complete output of the same case, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import pytest

from drunet_cli.brats import CHANNELS, Labels, Modality
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.volumes import file_sha256
from drunet_cli.segmentation.plan import (
    Making,
    State,
    adopt_sidecar,
    adopt_sidecars_in,
    finished_document,
    refusal,
    remove_orphan,
    state_of,
)
from drunet_cli.segmentation.sidecar import read_sidecar
from drunet_cli.segmentation.steps import CaseResult
from tests.cli.small_cohort import contents, write_case
from tests.segmentation.bright_engine import MAKING, outcomes_of, tasks_of
from tests.support import open_image

FOREIGN_JSON: Final = ["{}", "[]", "null", "1", '"text"', "{", "", '{"schema": "other/1"}', '{"schema": 1}', "[" * 100_000]


@dataclass(frozen=True)
class Made:
    """A case and its complete outputs."""

    case: Case
    label_map: Path

    @property
    def sidecar(self) -> Path:
        return self.label_map.parent / "p1.json"

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.sidecar.read_text())
        return document

    def record(self, document: Mapping[str, Any]) -> None:
        """Put another object into the sidecar."""
        self.sidecar.write_text(json.dumps(document))

    def finished(self, making: Making = MAKING, case: Case | None = None) -> dict[str, Any] | None:
        """As a second run sees it; which never changes anything."""
        before = contents(self.label_map.parent)
        try:
            return finished_document(self.label_map, case or self.case, making)
        finally:
            assert contents(self.label_map.parent) == before

    def assert_refused(self, match: str, making: Making = MAKING, case: Case | None = None) -> None:
        """In one line, with the remedy."""
        with pytest.raises(OutputError, match=match) as caught:
            self.finished(making, case)
        assert str(self.label_map) in str(caught.value)
        assert str(caught.value).endswith("; give --overwrite to segment the case again")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case in p1, and its outputs in out."""
    folder = tmp_path_factory.mktemp("template")
    (outcome,) = outcomes_of(tasks_of(write_case(folder / "p1"), folder / "out"))
    assert isinstance(outcome[1], CaseResult)
    return folder


@pytest.fixture
def made(template: Path, tmp_path: Path) -> Made:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)  # with the times of their last change
    (task,) = tasks_of(tmp_path / "p1", tmp_path / "out")
    task.target.sidecar_path.write_text(task.target.sidecar_path.read_text().replace(str(template), str(tmp_path)))
    return Made(task.case, task.target.label_map)


def touch(path: Path) -> None:
    """Another time of change, the same content."""
    stamp = path.stat()
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))


def changed(path: Path) -> None:
    """Other bytes, of the same number, at the same time."""
    stamp = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


# States


def test_state_of_what_has_never_been_segmented_is_new(tmp_path: Path) -> None:
    assert state_of(tmp_path / "absent/p1.nii.gz", sidecar=True) is State.NEW


def test_state_of_both_outputs_is_complete(made: Made) -> None:
    assert state_of(made.label_map, sidecar=True) is State.COMPLETE
    assert state_of(made.label_map, sidecar=False) is State.COMPLETE


def test_state_of_a_sidecar_alone_is_unfinished(made: Made) -> None:
    made.label_map.unlink()
    assert state_of(made.label_map, sidecar=True) is State.UNFINISHED
    assert state_of(made.label_map, sidecar=False) is State.UNFINISHED


def test_state_of_a_label_map_alone_is_foreign(made: Made) -> None:
    made.sidecar.unlink()
    assert state_of(made.label_map, sidecar=True) is State.FOREIGN


def test_state_beside_a_json_file_of_others_is_foreign(made: Made) -> None:
    for content in FOREIGN_JSON:
        made.sidecar.write_text(content)
        assert state_of(made.label_map, sidecar=True) is State.FOREIGN, content


def test_state_of_a_json_file_of_others_alone_is_foreign_where_a_sidecar_is_wanted(made: Made) -> None:
    made.label_map.unlink()
    for content in FOREIGN_JSON:
        made.sidecar.write_text(content)
        assert state_of(made.label_map, sidecar=True) is State.FOREIGN, content
        assert state_of(made.label_map, sidecar=False) is State.NEW, content


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_state_of_whatever_bears_the_name_of_the_label_map_is_foreign(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "p1.nii.gz"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    assert state_of(path, sidecar=True) is State.FOREIGN


# The same again


def test_an_output_of_the_same_case_is_finished(made: Made) -> None:
    assert made.finished() == made.document == read_sidecar(made.sidecar)


def test_no_label_map_is_not_finished(made: Made) -> None:
    made.label_map.unlink()
    assert made.finished() is None
    made.sidecar.unlink()
    assert made.finished() is None


def test_inputs_that_were_only_touched_are_the_same(made: Made) -> None:
    for path in made.case.images.values():
        touch(path)
    assert made.finished() == made.document


def test_inputs_that_were_moved_are_the_same(made: Made, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "p1", tmp_path / "moved/p1")
    case = replace(made.case, images={name: tmp_path / "moved/p1" / path.name for name, path in made.case.images.items()})
    assert made.finished(case=case) == made.document


def test_inputs_of_the_same_path_size_and_time_are_not_read(made: Made) -> None:
    changed(made.case.images[Modality.T2])
    assert made.finished() == made.document


def test_settings_that_nobody_decided_may_be_any(made: Made) -> None:
    made.record({**made.document, "settings": {**made.document["settings"], "batch_size": 99, "engine": "onnxruntime"}})
    assert made.finished() is not None
    made.assert_refused("with engine onnxruntime, now torch", replace(MAKING, settings={**MAKING.settings, "engine": "torch"}))


# Something else


@pytest.mark.parametrize("modality", CHANNELS)
def test_one_changed_input_is_refused_by_its_name(modality: Modality, made: Made) -> None:
    changed(made.case.images[modality])
    touch(made.case.images[modality])
    made.assert_refused(f"was made of another file than {made.case.images[modality]} is now")


def test_an_input_of_another_size_is_refused(made: Made) -> None:
    path = made.case.images[Modality.T1]
    path.write_bytes(path.read_bytes() + b"\0")
    made.assert_refused("was made of another file than .*_t1.nii.gz is now")


def test_swapped_inputs_of_one_size_and_time_are_refused(made: Made) -> None:
    # As an archive unpacks them: one time of change for all; uncompressed they are of one size.
    document, images = made.document, made.case.images
    for entry in document["inputs"].values():
        entry.update(n_bytes=1000, mtime_ns=10**18)
    made.record(document)
    for path in images.values():
        content = path.read_bytes()[:1000].ljust(1000, b"\0")
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    swapped = {**images, Modality.T1: images[Modality.T2], Modality.T2: images[Modality.T1]}
    made.assert_refused("was made of another file", case=replace(made.case, images=swapped))


def test_an_input_that_is_gone_is_bad_input(made: Made) -> None:
    made.case.images[Modality.T2].unlink()
    with pytest.raises(CaseError, match=r"_t2\.nii\.gz: cannot be read: No such file"):
        made.finished()


@pytest.mark.parametrize(
    ("making", "match"),
    [
        (replace(MAKING, weights_sha256=["0" * 64]), r"with other weights: bright, SHA-256 5eed5eed5eed\.\.\."),
        (replace(MAKING, labels=Labels.BRATS2023), "with other --labels"),
        (replace(MAKING, settings={"precision": "bfloat16"}), "with precision float32, now bfloat16"),
        (replace(MAKING, settings={"window": "auto"}), "with window full, now auto"),
        (replace(MAKING, settings={"tta": "flips"}), "with tta none, now flips"),
        (replace(MAKING, settings={"later": 1}), "with later None, now 1"),
    ],
    ids=["weights", "labels", "precision", "window", "tta", "a setting that was not recorded"],
)
def test_another_making_is_refused_with_what_differs(making: Making, match: str, made: Made) -> None:
    made.assert_refused(f"was made {match}", making)


# Damage


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content[:-30], "is truncated"),
        (lambda content: b"", "is empty"),
        (lambda content: bytes(len(content)), "is not a NIfTI file"),
        (lambda content: content[:100] + bytes([content[100] ^ 255]) + content[101:], "data are corrupt"),
    ],
    ids=["truncated", "empty", "zeros", "a byte"],
)
def test_a_damaged_label_map_is_refused(damage: Callable[[bytes], bytes], match: str, made: Made) -> None:
    made.label_map.write_bytes(damage(made.label_map.read_bytes()))
    made.assert_refused(f"{match}[^;]*; give --overwrite")  # and not to export or download anything


def test_a_label_map_that_was_edited_is_refused(made: Made) -> None:
    image = open_image(made.label_map)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 4
    nib.Nifti1Image(voxels, image.affine, image.header).to_filename(made.label_map)
    made.assert_refused("has been changed since drunet wrote it")


def test_a_label_map_that_was_only_copied_is_finished(made: Made) -> None:
    content = made.label_map.read_bytes()
    made.label_map.unlink()
    made.label_map.write_bytes(content)
    assert made.finished() == made.document


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_what_is_no_file_in_place_of_the_label_map_is_refused(kind: str, made: Made) -> None:
    made.label_map.unlink()
    if kind == "folder":
        made.label_map.mkdir()
    else:
        made.label_map.symlink_to("nowhere")
    with pytest.raises(OutputError, match=r"p1\.nii\.gz: cannot be read"):
        finished_document(made.label_map, made.case, MAKING)


def test_a_label_map_without_sidecar_is_refused(made: Made) -> None:
    made.sidecar.unlink()
    made.assert_refused("exists already, without a sidecar")


def test_a_label_map_beside_the_json_file_of_others_is_refused(made: Made) -> None:
    for content in FOREIGN_JSON:
        made.sidecar.write_text(content)
        made.assert_refused("exists already, without a sidecar")


def test_a_sidecar_of_an_older_version_is_refused(made: Made) -> None:
    document = made.document
    for entry in document["inputs"].values():
        del entry["n_bytes"], entry["mtime_ns"]
    made.record(document)
    made.assert_refused("was made by another version of drunet")


def test_a_sidecar_may_hold_more_than_drunet_knows(made: Made) -> None:
    made.record({**made.document, "reviewed_by": "A. B."})
    assert made.finished() == made.document


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
    changed(made.case.images[Modality.T2])
    touch(made.case.images[Modality.T2])
    values: list[object] = [None, "text", [], {}, 10**30, -1.5]
    for value in values:
        document = made.document
        document["inputs"]["t2"][key] = value
        made.record(document)
        made.assert_refused("was made of another file")


# A killed run's sidecar


def unpublished(made: Made) -> Path:
    """As a run leaves it that is killed between the label map and the sidecar."""
    return made.sidecar.rename(made.sidecar.with_name(".p1.json.elsewhere.77.tmp"))


def test_the_sidecar_of_a_killed_run_is_adopted(made: Made) -> None:
    before = contents(made.label_map.parent)
    unpublished(made)
    adopt_sidecar(made.label_map)
    assert contents(made.label_map.parent) == before


@pytest.mark.parametrize("name", ["p1.nii.gz", "p1.nii"])
def test_every_sidecar_of_a_killed_run_in_a_folder_is_adopted(name: str, made: Made) -> None:
    made.label_map.rename(made.label_map.with_name(name))
    made.label_map.with_name("p2.nii.gz").mkdir()
    for other in (".p2.json.elsewhere.77.tmp", ".p3.json.elsewhere.77.tmp", "p4.json.elsewhere.77.tmp", ".json.tmp", ".tmp"):
        made.label_map.with_name(other).write_text("{}")
    before = contents(made.label_map.parent)
    unpublished(made)
    adopt_sidecars_in(made.label_map.parent)
    assert contents(made.label_map.parent) == before


def test_nothing_is_adopted_in_no_folder(tmp_path: Path) -> None:
    adopt_sidecars_in(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    adopt_sidecars_in(tmp_path / "file")


def test_the_sidecar_of_another_label_map_is_not_adopted(made: Made) -> None:
    unpublished(made)
    changed(made.label_map)
    before = contents(made.label_map.parent)
    adopt_sidecar(made.label_map)
    assert contents(made.label_map.parent) == before


@pytest.mark.parametrize("content", ["", '{"schema": "drunet.segmentation/1"', "{}"])
def test_an_unfinished_sidecar_is_not_adopted_and_does_not_hide_a_whole_one(content: str, made: Made) -> None:
    temporary = unpublished(made)
    made.sidecar.with_name(".p1.json.elsewhere.11.tmp").write_text(content)
    adopt_sidecar(made.label_map)
    assert made.finished() == made.document
    assert not temporary.exists()


def test_a_sidecar_that_is_there_is_not_replaced(made: Made) -> None:
    temporary = unpublished(made)
    made.sidecar.write_text("mine")
    adopt_sidecar(made.label_map)
    assert (made.sidecar.read_text(), temporary.exists()) == ("mine", True)


def test_nothing_is_adopted_without_a_label_map(made: Made) -> None:
    temporary = unpublished(made)
    made.label_map.unlink()
    adopt_sidecar(made.label_map)
    assert (made.sidecar.exists(), temporary.exists()) == (False, True)
    adopt_sidecar(made.label_map.parent / "no/such/folder/p1.nii.gz")


# Sidecars without a label map


def test_a_sidecar_whose_label_map_is_gone_is_removed(made: Made) -> None:
    made.label_map.unlink()
    remove_orphan(made.label_map)
    assert not list(made.label_map.parent.iterdir())
    remove_orphan(made.label_map)


@pytest.mark.parametrize("changed", [False, True])
def test_files_of_a_label_map_that_is_gone_go_with_it_unless_somebody_changed_them(changed: bool, made: Made) -> None:
    picture = made.label_map.with_name("p1_preview.png")
    picture.write_bytes(b"ours")
    made.record({**made.document, "files": {picture.name: file_sha256(picture)}})
    if changed:
        picture.write_bytes(b"mine")
    made.label_map.unlink()
    remove_orphan(made.label_map)
    assert list(made.label_map.parent.iterdir()) == [picture] * changed


@pytest.mark.parametrize("kept", ["p1.nii.gz", "p1.nii"])
def test_a_sidecar_whose_label_map_is_there_is_kept(kept: str, made: Made) -> None:
    made.label_map.rename(made.label_map.with_name(kept))
    remove_orphan(made.label_map)
    assert made.sidecar.exists()


def test_a_json_file_of_others_is_no_orphan(made: Made) -> None:
    made.label_map.unlink()
    made.sidecar.write_text('{"mine": true}')
    remove_orphan(made.label_map)
    assert made.sidecar.read_text() == '{"mine": true}'


# Refusal of a whole run


def test_nothing_there_is_no_refusal(tmp_path: Path) -> None:
    assert refusal([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"], sidecar=True) is None


def test_a_refusal_names_the_first_and_counts_the_others(made: Made) -> None:
    folder = made.label_map.parent
    (folder / "p2.json").write_text("{}")
    (folder / "p3.nii.gz").write_text("")
    label_maps = [folder / f"{name}.nii.gz" for name in ("p0", "p2", "p1", "p3")]
    reason = refusal(label_maps, sidecar=True)
    assert reason is not None
    assert reason.startswith(f"{folder}/p2.json: exists already, and the outputs of 2 more of 4 cases; give --skip-existing")
    assert refusal(label_maps[:2], sidecar=False) is None
    one = refusal(label_maps[2:3], sidecar=True)
    assert one == f"{made.label_map}: exists already; give --skip-existing to leave out what is complete, or --overwrite"
