"""One case from raw scans to images on the BraTS grid.

The scans are registered to the reference, T1ce as a rule; the brain is found; the reference's brain is laid on the atlas; each
scan is interpolated once, from its own voxels to the grid, and everything outside the brain becomes 0.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import CHANNELS, Colour, Modality
from drunet_cli.errors import CaseError
from drunet_cli.host import check_installed
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning, WarningCode, modality_name_warnings, refuse_serious, voxel_litres
from drunet_cli.io.geometry import Affine, box_of
from drunet_cli.io.png import BLACK, DIM, LIGHT, WHITE, Canvas, Pixels, check_drawable, enlarged, fitted
from drunet_cli.prepare.brain import (
    LITRES,
    OWN_BACKGROUND,
    Brain,
    BrainMethod,
    Mask,
    chosen_method,
    find_brain,
    read_mask,
    stripped_brain,
)
from drunet_cli.prepare.grid import (
    BRATS_AFFINE,
    BRATS_SHAPE,
    NO_ATLAS,
    OWN_ATLAS,
    as_stored,
    is_brats_grid,
    load_atlas,
    own_axes,
)
from drunet_cli.prepare.registration import Isotropic, move_of, resampled
from drunet_cli.prepare.scans import (
    MOST_DEGREES,
    Registration,
    Scans,
    Similarity,
    read_scans,
    register_all,
    registration_warnings,
    similarities,
)

_INSIDE: Final = 0.5
_ATLASES: Final = (OWN_ATLAS, NO_ATLAS)
_MOST_LOST: Final = 0.01  # of the brain that may lie outside the grid before a word is said
_LEAST_COVERED: Final = 0.97  # of the brain by every scan


@dataclass(frozen=True, kw_only=True)
class PreparationSettings:
    """The settings of a preparation: built once, written into the record, and compared when a run resumes."""

    folder: Path
    """Folder that gets a folder of each case."""

    keep: bool = True
    """Whether the folder stays when the run is over."""

    reference: Modality = Modality.T1CE
    """The scan that the others are registered to."""

    brain: str = BrainMethod.AUTO
    """The method that finds the brain: a word of `BrainMethod`, or the path of a mask."""

    atlas: str = OWN_ATLAS
    """The image that the brain is laid on: the package's template, "none", or the path of a skull-stripped image."""

    preview: bool = False
    """Draw a picture of each case."""

    strict: bool = False
    """Let a case fail that has a warning which says that its images are likely wrong."""

    overwrite: bool = False
    """Replace outputs that are there."""

    skip_existing: bool = False
    """Leave out cases whose outputs are complete and were made of the same files in the same way."""

    threads: int = 1
    """Threads that work on one case."""

    @property
    def method(self) -> BrainMethod | None:
        """The method that finds the brain; None for a mask in a file."""
        return BrainMethod(self.brain) if self.brain in [*BrainMethod] else None

    @property
    def files(self) -> dict[str, Path]:
        """Files beside the scans that may change a voxel: a mask of the brain, an atlas."""
        given = {"brain": None if self.method else self.brain, "atlas": None if self.atlas in _ATLASES else self.atlas}
        return {name: Path(path) for name, path in given.items() if path is not None}

    def recorded(self) -> dict[str, str]:
        """The settings that may change a voxel."""
        return {"reference": self.reference.value, "brain": self.brain, "atlas": self.atlas}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A prepared case.

    images, brain: on the BraTS grid. heads: the images before anything outside the brain was set to 0; for a picture, else
    empty. transforms: take positions in each scan to positions on the grid. method: what found the brain. mask_sha256: of the
    file of a mask that was given. untouched: the scans were prepared already, and their voxels are as they were.
    """

    case: Case
    scans: Scans
    images: Mapping[Modality, npt.NDArray[Any]]
    heads: Mapping[Modality, npt.NDArray[Any]]
    brain: Mask
    transforms: Mapping[Modality, Affine]
    registrations: Mapping[Modality, Registration]
    similarity: Mapping[Modality, Similarity]
    method: str
    mask_sha256: str | None
    atlas: str
    atlas_sha256: str | None
    tools: Mapping[str, str]
    warnings: tuple[CaseWarning, ...]
    untouched: bool
    seconds: float

    @property
    def brain_ml(self) -> float:
        """Volume of the brain on the grid."""
        return int(np.count_nonzero(self.brain)) * voxel_litres(BRATS_AFFINE) * 1000


def check_extra(settings: PreparationSettings) -> None:
    """Raise MisuseError where something that the settings need is not installed. Imports nothing of the extra."""
    needed = ["SimpleITK"]
    if settings.method is BrainMethod.DEEPBET or settings.method is BrainMethod.AUTO:
        needed.append("deepbet")
    check_installed(needed)
    if settings.method is not None:
        chosen_method(settings.method, stripped=True)
    if settings.preview:
        check_drawable()


def prepare_scans(case: Case, settings: PreparationSettings) -> Preparation:
    """Read a case's raw scans and bring them to the BraTS grid.

    Raises CaseError for scans that cannot be prepared, and, where it is to be strict, for a serious warning; DeviceError and
    MisuseError as the methods for brains do.
    """
    begin = time.perf_counter()
    scans = read_scans(case)
    warnings = modality_name_warnings({modality: scan.volume for modality, scan in scans.items()})
    if _is_prepared(scans, settings):
        return _untouched(case, scans, warnings, settings, begin=begin)
    with ThreadPoolExecutor(settings.threads) as threads:
        list(threads.map(lambda scan: scan.coarse, scans.values()))
    registrations = register_all(scans, settings.reference, threads=settings.threads)
    brains = _brains(scans, settings)
    grid = scans[settings.reference].coarse
    to_reference = {modality: registration.transform for modality, registration in registrations.items()}
    coarse_brain = _brain_at(brains, to_reference, grid.affine, grid.voxels.shape)
    if not coarse_brain.any():
        raise CaseError(f"{case.name}: the brain mask does not meet {settings.reference.display}; look at both")
    stripped = Isotropic(np.where(coarse_brain, grid.voxels, 0), grid.origin_mm, grid.size_mm)
    to_grid, atlas_sha256 = _place(stripped, scans, settings)
    if settings.atlas != NO_ATLAS:
        warnings += _placement_warnings(to_grid, settings.reference)
    transforms = {modality: to_grid @ to_reference[modality] for modality in scans}
    brain = _brain_at(brains, transforms, BRATS_AFFINE, BRATS_SHAPE)
    with ThreadPoolExecutor(settings.threads) as threads:
        values = threads.map(
            lambda modality: scans[modality].on_grid(BRATS_AFFINE, BRATS_SHAPE, transforms[modality]), CHANNELS
        )
        heads = dict(zip(CHANNELS, values, strict=True))
    images = {
        modality: as_stored(np.where(brain, heads[modality], np.float32(0)), scans[modality].volume.voxels)
        for modality in CHANNELS
    }
    similar = similarities(scans, settings.reference, registrations, coarse_brain)
    first = brains[next(iter(brains))]
    warnings += registration_warnings(scans, registrations, similar, settings.reference)
    coarse_litres = int(np.count_nonzero(coarse_brain)) * voxel_litres(grid.affine)
    warnings += _brain_warnings(brains, coarse_litres, brain)
    warnings += _coverage_warnings(scans, images, brain)
    if settings.strict:
        refuse_serious(warnings)
    return Preparation(
        case=case,
        scans=scans,
        images=images,
        heads=heads if settings.preview else {},
        brain=brain,
        transforms=transforms,
        registrations=registrations,
        similarity=similar,
        method=first.method,
        mask_sha256=first.sha256,
        atlas=settings.atlas,
        atlas_sha256=atlas_sha256,
        tools={"SimpleITK": version("SimpleITK"), **first.tools},
        warnings=tuple(warnings),
        untouched=False,
        seconds=time.perf_counter() - begin,
    )


def _is_prepared(scans: Scans, settings: PreparationSettings) -> bool:
    """Whether the scans are stripped, and on the BraTS grid."""
    asked = settings.method is BrainMethod.AUTO and settings.atlas == OWN_ATLAS
    return asked and all(scan.is_stripped and is_brats_grid(scan.volume) for scan in scans.values())


def _untouched(
    case: Case, scans: Scans, warnings: Sequence[CaseWarning], settings: PreparationSettings, *, begin: float
) -> Preparation:
    brain = stripped_brain([scan.own_brain for scan in scans.values()])
    images = {modality: scans[modality].volume.voxels for modality in CHANNELS}
    stays = Registration(np.eye(4), 0.0, 0.0)
    return Preparation(
        case=case,
        scans=scans,
        images=images,
        heads=images if settings.preview else {},
        brain=brain,
        transforms={modality: np.eye(4) for modality in scans},
        registrations=dict.fromkeys(scans, stays),
        similarity={},
        method=OWN_BACKGROUND,
        mask_sha256=None,
        atlas=NO_ATLAS,
        atlas_sha256=None,
        tools={},
        warnings=tuple(warnings),
        untouched=True,
        seconds=time.perf_counter() - begin,
    )


def _brains(scans: Scans, settings: PreparationSettings) -> dict[Modality, Brain]:
    """The brain, by the scan in whose positions the mask lies; of stripped scans the brain of each."""
    if settings.method is None:
        order = list(scans)
        found, place = read_mask(Path(settings.brain), [scans[modality].volume for modality in order])
        return {order[place]: found}
    method = chosen_method(settings.method, stripped=all(scan.is_stripped for scan in scans.values()))
    if method == OWN_BACKGROUND:
        return {
            modality: Brain(scan.own_brain, scan.volume.affine, scan.volume, method, {}) for modality, scan in scans.items()
        }
    return {Modality.T1: find_brain(scans[Modality.T1].volume, method, threads=settings.threads)}


def _brain_at(
    brains: Mapping[Modality, Brain], transforms: Mapping[Modality, Affine], target: Affine, shape: tuple[int, ...]
) -> Mask:
    """The brain on another grid. transforms: take positions in each scan to positions on the grid."""
    shares = [
        resampled(brain.mask.view(np.uint8), brain.affine, target, shape, transform=transforms[modality])
        for modality, brain in brains.items()
    ]
    return stripped_brain(shares) if len(shares) > 1 else np.asarray(shares[0] >= _INSIDE)


def _place(stripped: Isotropic, scans: Scans, settings: PreparationSettings) -> tuple[Affine, str | None]:
    """The transform from the reference to the grid, and the SHA-256 of the atlas."""
    if settings.atlas == NO_ATLAS:
        return own_axes(scans[settings.reference].volume.affine, stripped.centre_mm), None
    atlas = load_atlas(settings.atlas)
    return atlas.place(stripped), atlas.sha256


def _placement_warnings(to_grid: Affine, reference: Modality) -> list[CaseWarning]:
    """A brain that was turned further than a head lies askew in a scanner: the template was met the wrong way."""
    _, degrees = move_of(to_grid, np.zeros(3))
    if degrees <= MOST_DEGREES:
        return []
    message = (
        f"the brain in {reference.display} was turned by {degrees:.0f} degrees to lie on the atlas, and heads lie "
        f"askew by no more than {MOST_DEGREES:g}; look at the picture that --preview writes; --atlas none uses no atlas"
    )
    return [CaseWarning(WarningCode.DOUBTFUL_REGISTRATION, message)]


def _brain_warnings(brains: Mapping[Modality, Brain], litres: float, on_grid: Mask) -> list[CaseWarning]:
    """Brains that are none, or that are cut off. litres: of the brain before it was laid on the grid."""
    warnings = []
    least, most = LITRES
    look = "look at the picture that --preview writes, and give a mask by --brain FILE if it is wrong"
    if not least <= litres <= most:
        message = f"the brain has {litres:.2f} litres, and brains have {least} to {most}; {look}"
        warnings.append(CaseWarning(WarningCode.DOUBTFUL_BRAIN, message))
    if any(brain.cut_off for brain in brains.values()):
        names = ", ".join(modality.display for modality, brain in brains.items() if brain.cut_off)
        message = f"the brain reaches the border of the scan ({names}), and part of it may be cut off; {look}"
        warnings.append(CaseWarning(WarningCode.BRAIN_AT_BORDER, message))
    lost = 1 - int(np.count_nonzero(on_grid)) * voxel_litres(BRATS_AFFINE) / litres
    if lost > _MOST_LOST:
        message = f"{lost:.0%} of the brain lie outside the BraTS grid of 240 x 240 x 155 mm and are lost"
        warnings.append(CaseWarning(WarningCode.BRAIN_OUTSIDE_FRAME, message))
    return warnings


def _coverage_warnings(scans: Scans, images: Mapping[Modality, npt.NDArray[Any]], brain: Mask) -> list[CaseWarning]:
    """Scans that do not show all of the brain."""
    warnings = []
    n_brain = max(1, int(np.count_nonzero(brain)))
    for modality, voxels in images.items():
        covered = int(np.count_nonzero(voxels[brain] > 0)) / n_brain
        if covered < _LEAST_COVERED:
            message = (
                f"{scans[modality].volume.path}: {modality.display} shows {covered:.0%} of the brain only; the network sees "
                "nothing where one image is 0"
            )
            warnings.append(CaseWarning(WarningCode.PARTIAL_COVERAGE, message))
    return warnings


_ORDER: Final = (Modality.T1, Modality.T1CE, Modality.T2, Modality.FLAIR)
_OUTLINE: Final[Colour] = (0xF0, 0xE4, 0x42)  # yellow of Okabe and Ito, which no grey hides
_BRIGHTEST_PERCENTILE: Final = 99.5

# Pixels. A voxel of the grid is a square of three halves.
_SCALE: Final = 1.5
_MARGIN: Final = 24
_GAP: Final = 12
_CELL: Final = 360
_HEADER: Final = 104
_NAME_SIZE: Final = 34
_SIZE: Final = 26
_SMALL: Final = 22
_LINE: Final = 40
_LETTERS: Final = (("A", "R"), ("S", "R"), ("S", "A"))  # at the top and at the left of each plane


def draw_overview(preparation: Preparation) -> bytes:
    """A picture of a prepared case, a PNG file: the four scans, skull and all, with the outline of the brain over each.

    A scan that was registered badly does not fill the outline; a mask that is wrong cuts into the brain, or goes around an eye.
    Equal cases give equal bytes.
    """
    images, brain = preparation.heads, preparation.brain
    middle = _middle_of(brain)
    heights = [round(rows * _SCALE) for rows in (brain.shape[1], brain.shape[2], brain.shape[2])]
    width = 2 * _MARGIN + len(_ORDER) * _CELL + (len(_ORDER) - 1) * _GAP
    canvas = Canvas(width, _HEADER + sum(heights) + len(heights) * _GAP + 2 * _LINE + _MARGIN, BLACK)
    name = fitted(preparation.case.name, _NAME_SIZE, width - 2 * _MARGIN)
    canvas.text((_MARGIN, _MARGIN + 26), name, size=_NAME_SIZE, colour=WHITE)
    for column, modality in enumerate(_ORDER):
        left = _MARGIN + column * (_CELL + _GAP)
        canvas.text((left + _CELL // 2, _HEADER - 12), modality.display, size=_SIZE, colour=LIGHT, anchor="ms")
        brightest = _brightest(images[modality], brain)
        top = _HEADER
        for axis, height in zip((2, 1, 0), heights, strict=True):
            canvas.paste(_cut(images[modality], brain, brightest, axis, middle[axis]), (left, top))
            if column == 0:
                for letter, place in zip(_LETTERS[2 - axis], ((_CELL // 2, 14), (12, height // 2)), strict=True):
                    canvas.text((left + place[0], top + place[1]), letter, size=_SMALL, colour=LIGHT, anchor="mm")
            top += height + _GAP
    baseline = top + _LINE // 2
    warnings = [warning.message for warning in preparation.warnings]
    canvas.first_warning((_MARGIN, baseline), warnings, size=_SMALL, width=width - 2 * _MARGIN)
    words = "Yellow: the brain, the same in all. Radiological view: the patient's left is on the right."
    canvas.text((_MARGIN, baseline + _LINE), words, size=_SMALL, colour=DIM)
    return canvas.png()


def _middle_of(brain: Mask) -> tuple[int, ...]:
    box = box_of(brain)
    if box is None:
        return tuple(n // 2 for n in brain.shape)
    middle = [(part.start + part.stop) // 2 for part in box]
    middle[0] -= (box[0].stop - box[0].start) // 8  # beside the cleft between the halves, which shows little
    return tuple(middle)


def _brightest(voxels: npt.NDArray[Any], brain: Mask) -> float:
    """The intensity that becomes white, as 0 becomes black: one of the brain, so that a bright skull darkens nothing."""
    inside = voxels[brain]
    inside = inside[inside > 0]
    return float(np.percentile(inside, _BRIGHTEST_PERCENTILE)) if inside.size else 1.0


def _cut(voxels: npt.NDArray[Any], brain: Mask, brightest: float, axis: int, index: int) -> Pixels:
    """One plane across an axis, [rows, columns, 3], with the outline."""
    section: npt.NDArray[Any] = np.take(voxels, index, axis=axis).T
    inside: Mask = np.take(brain, index, axis=axis).T
    if axis != 2:  # the head's top is where Z ends
        section, inside = section[::-1], inside[::-1]
    shares = np.clip(section.astype(np.float64) / brightest, 0, 1)
    greys: Pixels = np.rint(shares * 255).astype(np.uint8)
    size = (round(section.shape[0] * _SCALE), _CELL)
    pixels = np.repeat(enlarged(greys, size)[..., np.newaxis], 3, axis=2)
    area = enlarged(inside.astype(np.uint8) * 255, size) > 127
    pixels[area & ~ndimage.binary_erosion(area, iterations=2)] = _OUTLINE
    return pixels
