"""Raw scans to prepared cases: what is written, what is told, and what a second run makes of it. Known movements are found."""

import gzip
import json
import os
import shutil
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.app import main as drunet
from drunet_cli.errors import CaseError, DeviceError, ExitCode, MisuseError, OutputError
from drunet_cli.io.atomic import claim_of
from drunet_cli.io.case import Case, case_of
from drunet_cli.io.checks import voxel_litres
from drunet_cli.io.nifti import header_of, load_volume, volume_of
from drunet_cli.prepare import brain as brain_module
from drunet_cli.prepare.brain import Brain, BrainMethod, chosen_method, find_brain, one_solid_part, read_mask
from drunet_cli.prepare.grid import BRATS_AFFINE, BRATS_SHAPE, as_stored, load_atlas, own_axes
from drunet_cli.prepare.preparation import (
    PreparationSettings,
    _brain_warnings,
    _coverage_warnings,
    _placement_warnings,
    prepare_scans,
)
from drunet_cli.prepare.prepared_case import (
    PlannedPreparation,
    PreparationAction,
    PreparationState,
    PreparedFiles,
    PreparedResult,
    plan_preparations,
    prepare_case,
)
from drunet_cli.prepare.record import read_record
from drunet_cli.prepare.registration import isotropic
from drunet_cli.prepare.scans import Registration, Scan, Similarity, registration_warnings
from tests.prepare.simulated import (
    Acquisition,
    Affine,
    SimulatedHead,
    error_mm,
    head_of_phantom,
    movement,
    scan_of,
    write_nifti,
    write_raw_case,
)
from tests.support import GOLDEN_WEIGHTS, image_options

Mask = npt.NDArray[np.bool_]

NAME: Final = "p1"
MASK: Final = "mask.nii"
# The scans of the prepared case, and how far each has moved. FLAIR has moved farthest, and its top is missing.
SCANS: Final = {
    Modality.FLAIR: (Acquisition(axcodes="ASR", spacing_mm=1.5, slice_mm=3.0, cut=0.1, seed=0), {"degrees": 20.0, "mm": 30.0}),
    Modality.T1CE: (Acquisition(axcodes="RAS", spacing_mm=1.5, slice_mm=3.0, seed=1), {"degrees": 10.0, "mm": 10.0}),
    Modality.T1: (Acquisition(axcodes="PSL", spacing_mm=1.5, slice_mm=3.0, seed=2), {"degrees": 10.0, "mm": 10.0}),
    Modality.T2: (Acquisition(axcodes="RSA", spacing_mm=1.5, slice_mm=5.0, seed=3), {"degrees": 10.0, "mm": 10.0}),
}
HEADINGS: Final = ("t1", "t1ce", "t2", "flair")


@pytest.fixture(scope="module")
def head() -> SimulatedHead:
    return head_of_phantom()


@pytest.fixture(scope="module")
def prepared(head: SimulatedHead, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, PreparationSettings, dict[str, Any]]:
    """A raw case of moved scans on four grids, prepared with a mask on the grid of T1."""
    folder = tmp_path_factory.mktemp("prepared")
    scans = {modality: scan_of(head, modality, how, moved(head, modality)) for modality, (how, _) in SCANS.items()}
    case = write_raw_case(folder / "raw", NAME, scans)
    brain = replace(head, images={**head.images, Modality.T1: head.brain.astype(np.float32)})
    how = Acquisition(axcodes="PSL", spacing_mm=1.5, slice_mm=3.0, noise=0, bias=0)
    mask = scan_of(brain, Modality.T1, how, scans[Modality.T1].transform)
    write_nifti(folder / MASK, (mask.voxels > 1000).astype(np.int16), mask.affine)
    settings = PreparationSettings(folder=folder / "out", brain=str(folder / MASK), preview=True, threads=2)
    return case, settings, done(case, settings)


def moved(head: SimulatedHead, modality: Modality) -> Affine:
    how, most = SCANS[modality]
    return movement(head, np.random.default_rng(how.seed), **most)


def done(case: Case, settings: PreparationSettings) -> dict[str, Any]:
    (planned,) = plan_preparations([case], settings)
    result = prepare_case(planned)
    assert result is not None
    return result.document


Prepared = tuple[Case, PreparationSettings, dict[str, Any]]


@pytest.mark.slow
def test_images_lie_on_the_brats_grid_stripped(prepared: Prepared) -> None:
    _, settings, document = prepared
    files = PreparedFiles(settings.folder, NAME)
    brain = load_volume(files.brain)
    for path in (*files.images.values(), files.brain):
        volume = load_volume(path)
        assert volume.shape == BRATS_SHAPE
        assert np.array_equal(volume.affine, BRATS_AFFINE)
        assert not volume.voxels[brain.voxels == 0].any()
        assert volume.voxels.dtype == (np.uint8 if path == files.brain else np.int16)
    assert 0.75 < document["brain"]["volume_ml"] / 1000 < 0.9  # 0.82 by the mask itself
    assert files.picture.read_bytes().startswith(b"\x89PNG")
    assert document["warnings"] == []


@pytest.mark.slow
def test_transforms_take_every_scan_to_where_t1ce_goes(prepared: Prepared, head: SimulatedHead) -> None:
    _, _, document = prepared
    in_t1ce = np.array(document["transforms"]["t1ce"]) @ moved(head, Modality.T1CE)
    for modality in CHANNELS:
        of = moved(head, modality)
        found = np.array(document["transforms"][modality])
        assert error_mm(found, in_t1ce @ np.linalg.inv(of), head, of=of).max() < 1.5, modality


@pytest.mark.slow
def test_the_record_has_each_scan_and_its_grid(prepared: Prepared) -> None:
    case, settings, document = prepared
    assert read_record(PreparedFiles(settings.folder, NAME).record) == document
    for modality in CHANNELS:
        scan = load_volume(case.images[modality])
        assert document["inputs"][modality]["sha256"] == scan.source.sha256 if scan.source else False
        assert np.allclose(header_of(document["grids"][modality]["header"], name="x").get_best_affine(), scan.affine)
    assert set(document["files"]) == {path.name for path in PreparedFiles(settings.folder, NAME).paths} - {f"{NAME}.json"}
    assert document["similarity"]["t2"]["after"] > document["similarity"]["t2"]["before"]


@pytest.mark.slow
def test_a_second_run_verifies_or_refuses(prepared: Prepared) -> None:
    case, settings, document = prepared
    again = replace(settings, skip_existing=True)
    (planned,) = plan_preparations([case], again)
    assert (planned.state, planned.action) == (PreparationState.COMPLETE, PreparationAction.VERIFY)
    result = prepare_case(planned)
    assert result is not None
    assert (result.left_out, result.document) == (True, document)
    assert plan_preparations([case], settings)[0].action is PreparationAction.REFUSE
    with pytest.raises(Exception, match="was prepared with reference t1ce, now t1; give --overwrite"):
        prepare_case(replace(planned, settings=replace(again, reference=Modality.T1)))
    brain = PreparedFiles(settings.folder, NAME).brain
    content = brain.read_bytes()
    brain.write_bytes(content + b"x")
    with pytest.raises(Exception, match="has been changed since drunet wrote it; move it away to keep"):
        prepare_case(planned)
    brain.write_bytes(content)
    mask = Path(settings.brain)
    content = mask.read_bytes()
    mask.write_bytes(content + b"x")
    with pytest.raises(OutputError, match=r"was prepared with another .*mask\.nii than it is now"):
        prepare_case(planned)
    mask.unlink()
    with pytest.raises(CaseError, match=r"mask\.nii: cannot be read: No such file"):
        prepare_case(planned)
    mask.write_bytes(content)


def test_what_lies_beside_a_stripped_brain_does_not_shine_at_its_edge() -> None:
    voxels = np.zeros((30, 30, 30), np.float32)
    voxels[10:20, 10:20, 10:20] = 100
    voxels[20, 20, 20] = 100  # touches the brain at a corner alone
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    scan = Scan(volume_of(voxels, affine, name="t1"), Modality.T1)
    assert scan.is_stripped
    near = affine.copy()
    near[:3, 3] = 3.9
    assert scan.on_grid(near, voxels.shape, np.eye(4)).max() == pytest.approx(100)


def test_where_the_reference_moved_one_warning_says_so() -> None:
    volume = volume_of(np.pad(np.full((6, 6, 6), 100, np.float32), 12), np.diag([6.0, 6.0, 6.0, 1.0]), name="scan")
    scans = {modality: Scan(volume, modality) for modality in CHANNELS}
    others = [modality for modality in CHANNELS if modality is not Modality.T1CE]
    similar: dict[Modality, Similarity] = dict.fromkeys(others, Similarity(1.1, 1.2, 2.0))

    def warned(*shifts_mm: float) -> list[str]:
        """By how far FLAIR, T1 and T2 were moved."""
        moved = {modality: np.eye(4) for modality in CHANNELS}
        for modality, shift_mm in zip(similar, shifts_mm, strict=True):
            moved[modality][0, 3] = shift_mm
        registrations = {modality: Registration(found, found[0, 3], 0.0) for modality, found in moved.items()}
        return [warning.message for warning in registration_warnings(scans, registrations, similar, Modality.T1CE)]

    assert warned(0, 0, 0) == []
    (told,) = warned(4, 4.4, 4.2)
    assert "T1ce is on the grid of FLAIR and T1 and T2, which agree with one another and not with T1ce" in told
    assert [message.split(" is on the grid of ")[0].split()[-1] for message in warned(4, 4, -4)] == ["FLAIR", "T1", "T2"]
    assert len(warned(0, 4, 4)) == 2  # FLAIR agrees with T1ce


def brats_case(folder: Path, name: str = NAME) -> Case:
    """Four blobs on the BraTS grid, smaller than any brain: the network has less to compute."""
    i, j, k = np.ogrid[: BRATS_SHAPE[0], : BRATS_SHAPE[1], : BRATS_SHAPE[2]]
    distance = np.sqrt(((i - 120) / 22) ** 2 + ((j - 120) / 26) ** 2 + ((k - 75) / 15) ** 2)
    inside = distance < 1
    paths = {}
    for level, modality in enumerate(CHANNELS, start=1):
        voxels = np.zeros(BRATS_SHAPE, dtype=np.int16)
        voxels[inside] = (900 - 100 * level * distance[inside]).astype(np.int16)
        paths[modality] = write_nifti(folder / f"{name}_{modality}.nii", voxels, BRATS_AFFINE)
    return case_of(paths)


@pytest.fixture(scope="module")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, PreparedFiles, str]:
    """A case on the BraTS grid that names its patient, what was made of it, and what was told; no test changes them."""
    folder = tmp_path_factory.mktemp("stripped")
    case = brats_case(folder / "raw")
    scaled = case.images[Modality.T2]
    content = bytearray(scaled.read_bytes())
    content[112:120] = struct.pack("<ff", 0.5, 0)  # scl_slope, scl_inter
    content[148:154] = b"Miller"  # descrip
    scaled.write_bytes(content)
    (planned,) = plan_preparations([case], PreparationSettings(folder=folder / "out"))
    result = prepare_case(planned)
    assert result is not None
    return case, planned.files, result.in_words


Stripped = tuple[Case, PreparedFiles, str]


def test_prepared_scans_pass_through_untouched(stripped: Stripped, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case, made, told = stripped
    assert told.startswith("p1: prepared already (BraTS grid, stripped), its voxels were not touched")
    for modality in CHANNELS:
        before, after = case.images[modality].read_bytes(), gzip.decompress(made.images[modality].read_bytes())
        assert after == before.replace(b"Miller", b"\0" * 6)
    shutil.copytree(made.root, tmp_path / "out")
    files = PreparedFiles(tmp_path / "out", NAME)
    options = image_options(case.images)
    assert drunet(["prepare", *options, "-o", str(tmp_path / "out")]) == ExitCode.OUTPUT
    assert "give --skip-existing to leave out what is complete, or --overwrite" in capfd.readouterr().err
    assert drunet(["prepare", *options, "-o", str(tmp_path / "out"), "--skip-existing"]) == 0
    assert capfd.readouterr().out == f"{files.record}\n"
    assert drunet(["prepare", *options, "-o", str(tmp_path / "out"), "--skip-existing", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["left_out"] is True
    assert drunet(["prepare", str(tmp_path / "out"), "-o", str(tmp_path / "again")]) == ExitCode.SOME_FAILED
    assert f"{files.record} says that drunet has prepared these images" in capfd.readouterr().err
    scans = tmp_path / "scans.csv"
    scans.write_text("case,t1,t1ce,t2,flair\n" + ",".join([NAME, *(str(case.images[Modality(m)]) for m in HEADINGS)]))
    words = ["prepare", str(scans), "-o", str(tmp_path / "out"), "--skip-existing", "--dry-run", "--json"]
    assert drunet(words) == 0
    assert json.loads(capfd.readouterr().out)["would"] == "verify and leave out"
    files.brain.write_bytes(b"")
    assert drunet(words) == ExitCode.SOME_FAILED
    assert json.loads(capfd.readouterr().out)["differs"] is True
    files.record.unlink()
    files.mark.touch()
    assert files.state() is PreparationState.UNFINISHED
    files.mark.unlink()
    assert files.state() is PreparationState.FOREIGN


def test_files_that_no_record_describes_stay(stripped: Stripped, tmp_path: Path) -> None:
    case, _, _ = stripped
    settings = PreparationSettings(folder=tmp_path)
    for asked in (settings, replace(settings, skip_existing=True)):
        (planned,) = plan_preparations([case], asked)
        planned.files.folder.mkdir(exist_ok=True)
        planned.files.images[Modality.T1].write_text("somebody's")  # since the plan was made
        with pytest.raises(OutputError, match=r"p1_t1.nii.gz: exists already, and no record says that drunet made it"):
            prepare_case(planned)
        assert [path.name for path in planned.files.folder.iterdir()] == ["p1_t1.nii.gz"]


def recording(**changes: object) -> Callable[[PreparedFiles], object]:
    """Put other facts into the record."""
    return lambda files: files.record.write_text(json.dumps({**json.loads(files.record.read_text()), **changes}))


DOUBT: Final = {"code": "doubtful-registration", "message": "T2 was moved far"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda files: files.images[Modality.T2].unlink(), OutputError, r"p1_t2\.nii\.gz: is missing; give --overwrite"),
        (recording(settings=None), OutputError, r"p1\.json: was written by another version of drunet; give --overwrite"),
        (recording(warnings=[DOUBT]), CaseError, "T2 was moved far .strict: the warning doubtful-registration is a failure"),
    ],
    ids=["a file is missing", "another version", "strict"],
)
def test_complete_files_that_are_not_what_is_asked_for_are_named(
    change: Callable[[PreparedFiles], object], error: type[Exception], message: str, stripped: Stripped, tmp_path: Path
) -> None:
    case, made, _ = stripped
    shutil.copytree(made.root, tmp_path / "out")
    settings = PreparationSettings(folder=tmp_path / "out", skip_existing=True, strict=True)
    (planned,) = plan_preparations([case], settings)
    change(planned.files)
    with pytest.raises(error, match=message):
        prepare_case(planned)


def test_a_case_that_another_run_prepares_is_left_to_that_run(stripped: Stripped, tmp_path: Path) -> None:
    (planned,) = plan_preparations([stripped[0]], PreparationSettings(folder=tmp_path))
    planned.files.folder.mkdir()
    claim_of(planned.files.record).write_text(f"{socket.gethostname()} {os.getppid()}\n")
    assert prepare_case(planned) is None
    assert [path.suffix for path in planned.files.folder.iterdir()] == [".claim"]


def small_scan(path: Path, *, shape: tuple[int, int, int] = (20, 20, 20), spacing_mm: float = 4.0, code: int = 1) -> Path:
    voxels = np.random.default_rng(sum(map(ord, path.name))).integers(1, 900, shape).astype(np.int16)
    return write_nifti(path, voxels, np.diag([spacing_mm, spacing_mm, spacing_mm, 1]), code=code)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (20, 20, 3)}, "covers 12 mm only, as a localiser does or a part of a scan"),
        ({"code": 0}, "its header does not say how the voxels lie in the patient"),
    ],
)
def test_scans_that_cannot_be_prepared_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    paths = {modality: small_scan(tmp_path / f"{modality}.nii") for modality in CHANNELS}
    small_scan(paths[Modality.T2], **change)
    with pytest.raises(CaseError, match=message):
        prepare_scans(case_of(paths), PreparationSettings(folder=tmp_path))


def test_a_mask_is_of_a_scan(tmp_path: Path) -> None:
    scans = [load_volume(small_scan(tmp_path / f"{n}.nii", spacing_mm=size)) for n, size in enumerate((3.0, 4.0))]
    with pytest.raises(CaseError, match="has no voxel of 0"):
        read_mask(scans[1].path, scans)
    with pytest.raises(CaseError, match="on the grid of none of the four scans"):
        read_mask(scans[1].path, scans[:1])


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Installs a stand-in of hd-bet or synthstrip, which both take -i IN -o OUT: $4 is OUT."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def install(name: str, work: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{work}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return install


@pytest.mark.parametrize(
    ("method", "name"), [("hd-bet", "hd-bet"), pytest.param("synthstrip", "nipreps-synthstrip", marks=pytest.mark.slow)]
)
def test_other_programs_find_the_brain(method: str, name: str, program: Callable[[str, str], None], tmp_path: Path) -> None:
    scan = load_volume(small_scan(tmp_path / "t1.nii"))
    head = isotropic(scan.voxels, scan.affine, size_mm=1.0)
    stripped = {"brain": head.voxels.copy(), "nothing": np.zeros_like(head.voxels)}
    stripped["brain"][:20] = stripped["brain"][30:35, 20:25, 20:25] = 0
    for file, voxels in stripped.items():
        write_nifti(tmp_path / f"{file}.nii.gz", voxels, head.affine)
    program(name, f'cp "{tmp_path}/brain.nii.gz" "$4"')
    found = find_brain(scan, chosen_method(BrainMethod(method), stripped=False), threads=1)
    assert found.mask[20:].all()  # the hole is filled
    assert not found.mask[:20].any()
    assert found.cut_off
    program(name, f'cp "{tmp_path}/nothing.nii.gz" "$4"')
    with pytest.raises(CaseError, match="finds no brain"):
        find_brain(scan, method, threads=1)
    program(name, "echo 'out of memory' >&2; exit 1")
    with pytest.raises(DeviceError, match="failed with exit code 1: out of memory"):
        find_brain(scan, method, threads=1)


def test_the_solid_part_of_a_mask_is_its_largest_one_with_the_holes_that_scipy_fills() -> None:
    rng = np.random.default_rng(0)
    for share in np.linspace(0, 1, 101):  # full ones, empty ones, and every mixture
        mask = rng.random(rng.integers(1, 9, 3)) < share
        parts, n_parts = ndimage.label(mask)
        largest = mask if n_parts == 0 else parts == 1 + np.argmax([np.sum(parts == part) for part in range(1, n_parts + 1)])
        assert np.array_equal(one_solid_part(mask), ndimage.binary_fill_holes(largest)), share


@pytest.mark.parametrize(("middle", "is_cut"), [((15, 15, 15), False), ((15, 15, 9), True), ((22, 15, 15), True)])
def test_a_brain_that_a_tilted_border_of_the_scan_cuts_off_is_told(middle: tuple[int, ...], is_cut: bool) -> None:
    distance = np.linalg.norm(np.indices((30, 30, 30)).T - np.array(middle), axis=-1).T
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, :3] = Rotation.from_euler("xyz", [25, 20, 15], degrees=True).as_matrix() * 4
    scan = volume_of(np.where(distance < 10, 100, 0).astype(np.int16), affine, name="t1")
    assert find_brain(scan, BrainMethod.NONE, threads=1).cut_off == is_cut


def test_a_method_is_chosen_by_what_there_is(program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_method(BrainMethod.AUTO, stripped=True) == "own background"
    assert chosen_method(BrainMethod.AUTO, stripped=False) == "deepbet"
    with pytest.raises(MisuseError, match="no program hd-bet on PATH"):
        chosen_method(BrainMethod.HD_BET, stripped=False)
    program("hd-bet", "")
    monkeypatch.setattr(brain_module, "may_have_gpu", lambda: True)
    assert chosen_method(BrainMethod.AUTO, stripped=False) == "hd-bet"


@pytest.mark.slow
def test_deepbet_finds_a_brain_in_a_skull(head: SimulatedHead, tmp_path: Path) -> None:
    simulated = scan_of(head, Modality.T1, Acquisition(slice_mm=3.0))
    scan = load_volume(write_nifti(tmp_path / "t1.nii", simulated.voxels, simulated.affine))
    found = find_brain(scan, BrainMethod.DEEPBET, threads=2)
    litres = np.count_nonzero(head.brain) * np.linalg.det(np.abs(head.affine[:3, :3])) / 1e6
    n_litres = np.count_nonzero(found.mask) * voxel_litres(found.affine)
    assert n_litres == pytest.approx(litres, rel=0.15)  # 0.87 of 0.82 were found
    assert not found.cut_off


def test_axes_are_kept_without_an_atlas() -> None:
    affine = np.array([[0, 0, 5, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)
    assert np.allclose(own_axes(affine, np.zeros(3))[:3, :3], np.eye(3))
    tilted = np.eye(4)
    tilted[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    assert np.allclose(own_axes(tilted, np.zeros(3))[:3, :3] @ tilted[:3, :3], np.eye(3))
    steep = np.eye(4)
    steep[:3, :3] = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3  # two axes are as near to one of the patient's
    turn = own_axes(steep, np.zeros(3))[:3, :3]
    assert np.allclose(turn @ turn.T, np.eye(3))
    assert np.isclose(np.linalg.det(turn), 1)


@pytest.mark.parametrize(("degrees", "n_warnings"), [(40, 0), (50, 1), (180, 1)])
def test_a_brain_that_lies_the_wrong_way_on_the_atlas_is_told(degrees: float, n_warnings: int) -> None:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0, 20], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    warnings = _placement_warnings(turn, Modality.T1CE)
    assert [warning.code for warning in warnings] == ["doubtful-registration"] * n_warnings


CUBE: Final = np.pad(np.ones((20, 20, 20), dtype=np.bool_), 5)  # of a litre where a voxel has 5 mm
BLOCKS: Final = volume_of(CUBE.astype(np.int16), np.diag([5.0, 5.0, 5.0, 1.0]), name="t1")


@pytest.mark.parametrize(
    ("litres", "mask", "n_on_grid", "codes"),
    [
        (1.0, CUBE, 1_000_000, []),
        (0.5, CUBE, 500_000, ["doubtful-brain"]),
        (3.0, CUBE, 3_000_000, ["doubtful-brain"]),
        (1.0, np.ones_like(CUBE), 1_000_000, ["brain-at-border"]),
        (1.0, CUBE, 980_000, ["brain-outside-frame"]),
    ],
)
def test_a_brain_that_is_none_or_not_whole_is_told(litres: float, mask: Mask, n_on_grid: int, codes: list[str]) -> None:
    brains = {Modality.T1: Brain(mask, BLOCKS.affine, BLOCKS, "given", {})}
    warnings = _brain_warnings(brains, litres, np.ones(n_on_grid, dtype=np.bool_))
    assert [warning.code for warning in warnings] == codes


@pytest.mark.parametrize(("shown", "codes"), [(98, []), (96, ["partial-coverage"])])
def test_a_scan_that_does_not_show_all_of_the_brain_is_told(shown: int, codes: list[str]) -> None:
    voxels = np.where(np.arange(120) < shown, 7, 0)
    scans = {Modality.T2: Scan(BLOCKS, Modality.T2)}
    warnings = _coverage_warnings(scans, {Modality.T2: voxels}, np.arange(120) < 100)
    assert [warning.code for warning in warnings] == codes


@pytest.mark.parametrize(
    ("likeness", "moved_mm", "degrees", "elsewhere_mm", "code"),
    [
        ((1.1, 1.2, 1.5), 20, 10, 3.0, None),
        ((1.1, 1.01, 1.5), 20, 10, 3.0, None),  # edges agree, or intensities: one is enough
        ((1.1, 1.2, 1.1), 20, 10, 3.0, None),
        ((1.1, 1.01, 1.1), 20, 10, 3.0, "doubtful-registration"),
        ((1.1, 1.2, 1.5), 61, 10, 3.0, "doubtful-registration"),
        ((1.1, 1.2, 1.5), 20, 46, 3.0, "doubtful-registration"),
        ((1.1, 1.2, 1.5), 2, 1, 0.0, "one-grid-moved"),
    ],
)
def test_a_registration_that_cannot_be_right_or_is_not_expected_is_told(
    likeness: tuple[float, float, float], moved_mm: float, degrees: float, elsewhere_mm: float, code: str | None
) -> None:
    affine = BLOCKS.affine + elsewhere_mm * np.eye(4, k=3)
    scans = {
        Modality.T1CE: Scan(BLOCKS, Modality.T1CE),
        Modality.T2: Scan(volume_of(BLOCKS.voxels, affine, name="t2"), Modality.T2),
    }
    registrations = {modality: Registration(np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3), moved_mm, degrees) for modality in scans}
    warnings = registration_warnings(scans, registrations, {Modality.T2: Similarity(*likeness)}, Modality.T1CE)
    assert [warning.code for warning in warnings] == ([] if code is None else [code])


def test_an_atlas_of_ones_own_lies_where_the_template_lies(tmp_path: Path) -> None:
    own = load_atlas("drunet")
    atlas = load_atlas(str(write_nifti(tmp_path / "atlas.nii", BLOCKS.voxels, BLOCKS.affine)))
    moved = atlas.to_grid[:3, :3] @ atlas.image.centre_mm + atlas.to_grid[:3, 3]
    np.testing.assert_allclose(moved, own.image.centre_mm)
    with pytest.raises(CaseError, match="no atlas: it has no background of 0 around a brain"):
        load_atlas(str(write_nifti(tmp_path / "full.nii", np.ones_like(BLOCKS.voxels), BLOCKS.affine)))


def test_what_was_done_is_told_in_one_line() -> None:
    document = {
        "case": "p1",
        "seconds": 12.34,
        "untouched": False,
        "moved": {"flair": {"mm": 3.21}, "t1ce": {"mm": 0.0}, "t1": {"mm": 0.0}, "t2": {"mm": 0.0}},
        "brain": {"volume_ml": 1412.0, "method": "deepbet"},
    }
    still = {**document, "moved": {"t1ce": {"mm": 0.0}}}
    ending = "brain 1.41 litres by deepbet (12.3 s)"
    assert PreparedResult(document).in_words == f"p1: moved FLAIR 3.2 mm; {ending}"
    assert PreparedResult(still).in_words == f"p1: no scan had to be moved; {ending}"
    assert PreparedResult(document, left_out=True).in_words == "p1: complete, left out"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")])
def test_memory_that_does_not_suffice_fails_one_case(
    error: Exception, stripped: Stripped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    case, _, _ = stripped
    monkeypatch.setattr("drunet_cli.prepare.prepared_case.prepare_scans", fail)
    (planned,) = plan_preparations([case], PreparationSettings(folder=tmp_path / "out"))
    with pytest.raises(DeviceError, match="memory does not suffice to prepare the case"):
        prepare_case(planned)


@pytest.mark.parametrize(
    ("values", "dtype"), [([0, 900], "int16"), ([0, 9], "float32"), ([0.5, 900], "float32"), ([0, 90000], "float32")]
)
def test_voxels_are_whole_where_the_scan_has_hundreds_of_them(values: list[float], dtype: str) -> None:
    assert as_stored(np.array([0.6, 3.2], np.float32), np.array(values)).dtype == dtype


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--t1", "a.nii"], "missing --flair, --t1ce, --t2: a case needs all four"),
        (["--case", "p1"], "missing --flair, --t1ce, --t1, --t2"),
        ([], "missing CASES: name folders or tables of cases, or give --t1 --t1ce --t2 --flair"),
        (["raw", "--t1", "a.nii"], "CASES (--pattern, --channels, --shard) and --t1 --t1ce --t2 --flair --case exclude"),
        (["raw", "--brain", "deepbett"], "--brain deepbett: is none of auto, deepbet, hd-bet, synthstrip, none, and no file"),
        (["raw", "--atlas", "sri24"], "--atlas sri24: is none of drunet, none, and no file of this name is there"),
    ],
)
def test_misuse_is_told(words: list[str], message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert drunet(["prepare", *words, "-o", str(tmp_path / "out")]) == ExitCode.MISUSE
    assert message in capfd.readouterr().err


def test_without_the_extra_one_line_says_how_to_install_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drunet_cli.host.missing_packages", lambda names: names)
    for modality in CHANNELS:
        small_scan(tmp_path / f"p1_{modality}.nii")
    assert drunet(["prepare", str(tmp_path), "-o", str(tmp_path / "out")]) == ExitCode.MISUSE
    assert "SimpleITK and deepbet not installed; run: pip install SimpleITK deepbet" in capfd.readouterr().err


@pytest.mark.slow
def test_segment_prepares_each_case_just_before_it_and_keeps_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("p1", "p2", "p3"):
        brats_case(tmp_path / "raw" / name, name)
    (tmp_path / "raw" / "p2" / "p2_t1.nii").write_bytes(b"")
    found = []

    def prepare(planned: PlannedPreparation) -> object:
        found.append((sorted(path.name for path in tmp_path.glob("out/*.nii.gz")), sorted(planned.files.root.iterdir())))
        return prepare_case(planned)

    monkeypatch.setattr("drunet_cli.prepare.prepared_case.prepare_case", prepare)
    words = ["segment", str(tmp_path / "raw"), "-o", str(tmp_path / "out"), "--prepare", "--weights", str(GOLDEN_WEIGHTS)]
    assert drunet([*words, "--window", "auto", "--preview"]) == ExitCode.SOME_FAILED
    assert found == [([], []), (["p1.nii.gz"], []), (["p1.nii.gz"], [])]
    assert "p2_t1.nii: is empty" in capfd.readouterr().err
    sidecar = json.loads((tmp_path / "out" / "p1.json").read_text())
    assert sidecar["prepared_from"]["record"] is None
    assert sidecar["inputs"]["t1"]["path"] == "p1_t1.nii.gz"
    assert set(sidecar["files"]) == {"p1_preview.png", "p1_prepared.png"}
    assert drunet(["report", str(tmp_path / "out"), "-o", str(tmp_path / "page.html"), "--viewer"]) == 0
    assert "its prepared images were not kept; segment the scans again by segment --prepare" in capfd.readouterr().err


def test_segment_prepares_and_carries_labels_back(
    stripped: Stripped, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case, made, _ = stripped
    options = image_options(case.images)
    keep, out = str(tmp_path / "prepared"), tmp_path / "out"
    words = ["segment", *options, "-o", str(out), "--prepare", "--weights", str(GOLDEN_WEIGHTS), "--window", "auto"]
    assert drunet([*words, "--keep-prepared", keep, "--dry-run"]) == 0
    assert "prepare, segment" in capfd.readouterr().out
    raw = PreparedFiles(tmp_path / "prepared", NAME).images[Modality.T1]
    raw.parent.mkdir(parents=True)
    raw.write_text("somebody's")
    for more in (["--dry-run"], []):
        assert drunet([*words, "--keep-prepared", keep, *more]) == ExitCode.OUTPUT
        assert f"{raw}: exists already" in " ".join(capfd.readouterr().err.split())
    assert raw.read_text() == "somebody's"
    shutil.rmtree(keep)
    shutil.copytree(made.root, keep)
    record = PreparedFiles(Path(keep), NAME).record
    doubt = {"code": "doubtful-brain", "message": "a small brain"}
    record.write_text(json.dumps({**json.loads(record.read_text()), "warnings": [doubt]}))
    assert drunet([*words, "--keep-prepared", keep, "--in-space", "t2"]) == 0
    label_map, carried = load_volume(out / "p1.nii.gz"), load_volume(out / "p1_in_t2.nii.gz")
    assert np.array_equal(label_map.voxels, carried.voxels)
    assert np.array_equal(carried.affine, load_volume(case.images[Modality.T2]).affine)
    sidecar = json.loads((out / "p1.json").read_text())
    told = json.loads(record.read_text())
    assert sidecar["prepared_from"]["record"] == str(record)
    assert sidecar["prepared_from"]["inputs"]["t2"] == told["inputs"]["t2"]
    assert sidecar["prepared_from"]["transforms"] == told["transforms"]
    assert set(sidecar["files"]) == {"p1_in_t2.nii.gz"}
    assert doubt in sidecar["warnings"]
    capfd.readouterr()
    assert drunet([*words, "--skip-existing"]) == ExitCode.MISUSE
    assert "--skip-existing with --prepare needs --keep-prepared DIR" in capfd.readouterr().err
    assert drunet([*words, "--keep-prepared", keep, "--in-space", "t2", "--skip-existing"]) == 0
    assert "complete, left out" in capfd.readouterr().err
    words = ["segment", *options, "-o", str(tmp_path / "other"), "--in-space", "t1", "--weights", str(GOLDEN_WEIGHTS)]
    assert drunet([*words, "--window", "auto"]) == ExitCode.BAD_INPUT
    assert "is not a case that drunet prepare has made" in capfd.readouterr().err
