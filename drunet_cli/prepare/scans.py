"""The four raw scans of a patient, each on its own grid: read, checked, and registered to one another."""

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.case import HEADER, BrokenCase, Case
from drunet_cli.io.checks import CaseWarning, WarningCode, check_all_different, check_voxels, same_grid, why_unstripped
from drunet_cli.io.geometry import Affine
from drunet_cli.io.inputs import InputFile
from drunet_cli.io.intensities import mend_rounded_zero, without_ringing
from drunet_cli.io.nifti import Volume, load_volume
from drunet_cli.prepare.brain import Mask, one_solid_part
from drunet_cli.prepare.dicom import dicom_folder, load_series, names_patient, scans_of_study, source_of, studies_in
from drunet_cli.prepare.registration import (
    Isotropic,
    edge_peak,
    isotropic,
    move_of,
    mutual_information,
    register,
    resampled,
)

_LEAST_EXTENT_MM: Final = 60.0  # half of a brain's height; localisers have some slices in each of three directions
# Registration finds equal images again to a few tenths of a millimetre, and no patient lies stiller between two scans.
_AGREE_MM: Final = 1.0
_FARTHEST_MM: Final = 60.0  # a head's half width: no patient moves so far in a coil
MOST_DEGREES: Final = 45.0
# Edges of T1, T2 and FLAIR against T1ce: 1.17 to 1.90 in nineteen BraTS cases, 1.39 to 2.14 in raw scans of two patients.
# Against T1ce of another patient, registered: 0.96 to 1.13, and once in nineteen times 1.17. Noise and a strong bias field can
# bring a right registration down to 1.09; mutual information, at most 1.012 with another patient's, tells that it is right.
_LEAST_PEAK: Final = 1.13
_LEAST_INFORMATION: Final = 1.015


@dataclass(frozen=True)
class Scan:
    """One scan as it came, its background mended where it is stripped already."""

    volume: Volume
    modality: Modality

    @cached_property
    def coarse(self) -> Isotropic:
        """The scan for registration."""
        return isotropic(self.volume.voxels, self.volume.affine)

    @cached_property
    def is_stripped(self) -> bool:
        """Whether the voxels above 0 are no more than a brain: 2.2 litres at most, and hardly any on the sides of the scan."""
        return why_unstripped(self.volume.brain, self.volume.affine) is None

    @cached_property
    def own_brain(self) -> Mask:
        """[I, J, K]: the brain of a scan that is stripped: what is above 0, without specks and holes."""
        return one_solid_part(self.volume.brain)

    def on_grid(self, target: Affine, shape: tuple[int, ...], transform: Affine) -> npt.NDArray[np.float32]:
        """The scan at the voxels of another grid by one linear interpolation; 0 outside the scan.

        transform: takes positions in the scan to positions on the grid. The edge of a stripped scan is not mixed with its
        background: a voxel is the weighted mean of the brain around it.
        """
        voxels = np.maximum(self.volume.voxels, 0)
        if self.is_stripped:  # also without specks beside it, which the division would make bright
            voxels = np.where(self.own_brain, voxels, 0)
        values = resampled(voxels, self.volume.affine, target, shape, transform=transform)
        if self.is_stripped:
            share = resampled(self.own_brain.view(np.uint8), self.volume.affine, target, shape, transform=transform)
            np.divide(values, share, out=values, where=share > 0)
        return values


Scans = Mapping[Modality, Scan]


def cases_of_studies(folder: Path) -> list[Case | BrokenCase]:
    """The cases that the DICOM studies in a folder make, named by their folders.

    A folder that names the patient is not named again: its study has a number.
    """
    cases: list[Case | BrokenCase] = []
    for n, study in enumerate(studies_in(folder), start=1):
        known_as = study.absolute().name if study == folder else f"{folder}, study {n}"
        try:
            if study != folder and names_patient(str(study.relative_to(folder)), study):
                raise CaseError(f"{known_as}: its folder names the patient, or a date; {_NAME_BY_TABLE}")
            known_as = study.absolute().name
            cases.append(Case(known_as, scans_of_study(study)))
        except CaseError as error:  # the folder of a study that cannot be read may name the patient
            message = str(error) if known_as == study.absolute().name else str(error).replace(str(study), known_as)
            cases.append(BrokenCase(known_as, CaseError(message, details=error.details)))
    return cases


_NAME_BY_TABLE: Final = f"name the case in a table ({HEADER}), with scans as FOLDER:NUMBER, or rename the folder"


def _check_name(case: Case) -> None:
    """Raise CaseError for a name, which outputs will bear, that names the patient of a DICOM series."""
    if any(dicom_folder(path) and names_patient(case.name, path) for path in case.images.values()):
        raise CaseError(f"its name holds the patient's name or number, or a date; give another by --case, or {_NAME_BY_TABLE}")


def changed_scans(before: Mapping[str, InputFile], case: Case) -> list[Path]:
    """The scans of a case that are no longer the inputs that were read. Raises CaseError for one that cannot be read."""
    changed = []
    for modality, path in case.images.items():
        known = before[modality]
        if dicom_folder(path):
            now = source_of(path)
            same = (now.n_bytes, now.sha256) == (known.n_bytes, known.sha256)
        else:
            same = known.is_still(path)
        if not same:
            changed.append(path)
    return changed


def read_scans(case: Case) -> dict[Modality, Scan]:
    """Read the four scans of a case. Raises CaseError for a scan that cannot be prepared."""
    _check_name(case)
    with ThreadPoolExecutor(len(CHANNELS)) as threads:
        scans = dict(
            zip(CHANNELS, threads.map(lambda modality: _read_scan(case.images[modality], modality), CHANNELS), strict=True)
        )
    check_all_different({modality: scan.volume for modality, scan in scans.items()}, "scans")
    return scans


def _read_scan(path: Path, modality: Modality) -> Scan:
    volume = load_series(path) if dicom_folder(path) else mend_rounded_zero(load_volume(path))
    extent_mm = min(n * size for n, size in zip(volume.shape, volume.spacing_mm, strict=True))
    if extent_mm < _LEAST_EXTENT_MM:
        raise CaseError(
            f"{path} ({modality.display}): covers {extent_mm:.0f} mm only, as a localiser does or a part of a scan; give a "
            "scan of the whole brain"
        )
    if not volume.has_orientation:
        raise CaseError(
            f"{path} ({modality.display}): its header does not say how the voxels lie in the patient (sform and qform codes "
            "are 0), and left and right cannot be guessed; convert the scan from DICOM again, for example with dcm2niix"
        )
    check_voxels(volume, modality)
    return Scan(without_ringing(volume), modality)


@dataclass(frozen=True)
class Registration:
    """The registration of one scan to the reference.

    transform: takes positions in the scan to positions in the reference. moved_mm, moved_degrees: how far it takes the middle
    of the reference's head, and how far it turns.
    """

    transform: Affine
    moved_mm: float
    moved_degrees: float


def register_all(scans: Scans, reference: Modality, *, threads: int) -> dict[Modality, Registration]:
    """Register every scan to the reference. A scan on the reference's grid that agrees with it is not moved.

    Raises CaseError for a scan that shows nothing of what the reference shows.
    """
    others = [modality for modality in scans if modality is not reference]
    centre = scans[reference].coarse.centre_mm
    with ThreadPoolExecutor(max(1, min(threads, len(others)))) as pool:  # ITK computes outside the interpreter's lock
        found = dict(zip(others, pool.map(lambda modality: _register(scans[modality], scans[reference]), others), strict=True))
    found[reference] = np.eye(4)
    return {modality: Registration(found[modality], *move_of(found[modality], centre)) for modality in scans}


def _register(scan: Scan, reference: Scan) -> Affine:
    try:
        transform = register(scan.coarse, reference.coarse)
    except CaseError as error:
        raise CaseError(f"{scan.volume.path}: cannot be registered to {reference.volume.path}: {error}") from error
    if same_grid(scan.volume, reference.volume) and _apart_mm(transform, np.eye(4), reference) < _AGREE_MM:
        return np.eye(4)
    return transform


def _apart_mm(one: Affine, other: Affine, reference: Scan) -> float:
    """How far apart two transforms lay the points of the reference's head, in the mean."""
    head = np.argwhere(reference.coarse.head)[::_SAMPLED] * reference.coarse.size_mm + reference.coarse.origin_mm
    difference = one - other
    return float(np.linalg.norm(head @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


_SAMPLED: Final = 97


@dataclass(frozen=True)
class Similarity:
    """The likeness of a scan and the reference within the brain.

    before, after: normalised mutual information, as the headers place them and registered. edge_peak: how many times better
    their edges agree, registered, than with the scan shifted by 8 mm.
    """

    before: float
    after: float
    edge_peak: float


def similarities(
    scans: Scans, reference: Modality, registrations: Mapping[Modality, Registration], inside: Mask
) -> dict[Modality, Similarity]:
    """The likeness of every scan and the reference. inside: the brain on the coarse grid of the reference."""
    grid = scans[reference].coarse

    core = ndimage.binary_erosion(inside, iterations=_RIM_VOXELS)  # whose edge is that of the mask

    def moved(modality: Modality, transform: Affine) -> npt.NDArray[np.float32]:
        coarse = scans[modality].coarse
        return resampled(coarse.voxels, coarse.affine, grid.affine, grid.voxels.shape, transform=transform)

    def similarity(modality: Modality) -> Similarity:
        before, after = moved(modality, np.eye(4)), moved(modality, registrations[modality].transform)
        before_nmi, after_nmi = (mutual_information(grid.voxels, each, inside & (each > 0)) for each in (before, after))
        return Similarity(before_nmi, after_nmi, edge_peak(grid.voxels, after, core, size_mm=grid.size_mm))

    return {modality: similarity(modality) for modality in scans if modality is not reference}


_RIM_VOXELS: Final = 3


def registration_warnings(
    scans: Scans, registrations: Mapping[Modality, Registration], similar: Mapping[Modality, Similarity], reference: Modality
) -> list[CaseWarning]:
    """Registrations that cannot be right, or that a user may not expect."""
    warnings = []
    moved: dict[Modality, Registration] = {}  # though their grid is the reference's
    for modality, found in similar.items():
        path, registration = scans[modality].volume.path, registrations[modality]
        if found.edge_peak < _LEAST_PEAK and found.after < _LEAST_INFORMATION:
            message = (
                f"{path}: {modality.display} is not like {reference.display} after registration (edges agree "
                f"{found.edge_peak:.2f} times better than 8 mm away, {_LEAST_PEAK:g} is the least); is it a scan of this "
                "patient's brain? Look at the picture that --preview writes"
            )
            warnings.append(CaseWarning(WarningCode.DOUBTFUL_REGISTRATION, message))
        elif registration.moved_mm > _FARTHEST_MM or registration.moved_degrees > MOST_DEGREES:
            message = (
                f"{path}: {modality.display} was moved by {registration.moved_mm:.0f} mm and {registration.moved_degrees:.0f} "
                f"degrees to lie on {reference.display}; look at the picture that --preview writes"
            )
            warnings.append(CaseWarning(WarningCode.DOUBTFUL_REGISTRATION, message))
        elif same_grid(scans[modality].volume, scans[reference].volume) and not np.array_equal(
            registration.transform, np.eye(4)
        ):
            moved[modality] = registration
    return warnings + _one_grid_warnings(scans, moved, reference)


def _one_grid_warnings(scans: Scans, moved: Mapping[Modality, Registration], reference: Modality) -> list[CaseWarning]:
    """Scans on the reference's grid that were moved; one warning where they agree with one another, and so the reference moved.

    moved: more than one, and all others but the reference, where a single warning is true.
    """
    transforms = [each.transform for each in moved.values()]
    together = all(_apart_mm(one, other, scans[reference]) < _AGREE_MM for one, other in itertools.combinations(transforms, 2))
    if together and len(moved) == len(scans) - 1:
        words = " and ".join(modality.display for modality in moved)
        apart = max(moved.values(), key=lambda each: each.moved_mm)
        name = reference.display
        message = (
            f"{scans[reference].volume.path}: {name} is on the grid of {words}, which agree with one another and not with "
            f"{name}; they were moved by {apart.moved_mm:.1f} mm and {apart.moved_degrees:.1f} degrees to lie on {name}: the "
            f"patient seems to have moved before or after {name}"
        )
        return [CaseWarning(WarningCode.ONE_GRID_MOVED, message)]
    messages = [
        f"{scans[modality].volume.path}: {modality.display} is on the grid of {reference.display}, and was moved all the same, "
        f"by {each.moved_mm:.1f} mm and {each.moved_degrees:.1f} degrees: the patient seems to have moved"
        for modality, each in moved.items()
    ]
    return [CaseWarning(WarningCode.ONE_GRID_MOVED, message) for message in messages]
