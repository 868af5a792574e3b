"""Checks of the four images before any heavy work: an error stops the case, a warning goes with its result."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation

from drunet_cli.brats import CHANNELS, Modality, dice_of
from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import (
    FRAME,
    Geometry,
    at_1_mm,
    farthest_corner_mm,
    is_rounding,
    is_same_place,
    orientation_to_network,
    skew_degrees,
)
from drunet_cli.io.intensities import background_remarks, why_background_is_unusable
from drunet_cli.io.naming import modality_in_name
from drunet_cli.io.nifti import Grid, Volume


class WarningCode(StrEnum):
    """Stable names of the warnings, for scripts that read them."""

    MODALITY_NAME = "modality-name"
    DIFFERENT_BRAINS = "different-brains"
    NOT_SKULL_STRIPPED = "not-skull-stripped"
    RESAMPLED = "resampled"
    BRAIN_OUTSIDE_FRAME = "brain-outside-frame"
    THICK_SLICES = "thick-slices"
    NO_ORIENTATION = "no-orientation"
    FORMS_DISAGREE = "forms-disagree"
    QFORM_MENDED = "qform-mended"
    GRIDS_ROUNDED = "grids-rounded"
    SHEARED = "sheared"
    BACKGROUND_NOT_ZERO = "background-not-zero"
    LABELS_OUTSIDE_BRAIN = "labels-outside-brain"
    LARGE_TUMOUR = "large-tumour"
    TUMOUR_AT_EDGE = "tumour-at-edge"
    MANY_SMALL_PARTS = "many-small-parts"
    EMPTY_RESULT = "empty-result"
    DOUBTFUL_REGISTRATION = "doubtful-registration"
    DOUBTFUL_BRAIN = "doubtful-brain"
    BRAIN_AT_BORDER = "brain-at-border"
    PARTIAL_COVERAGE = "partial-coverage"
    ONE_GRID_MOVED = "one-grid-moved"


# Warnings that a label map is likely wrong, and not only how it was made or that the network found nothing.
SERIOUS: Final = frozenset(
    {
        WarningCode.MODALITY_NAME,
        WarningCode.DIFFERENT_BRAINS,
        WarningCode.NOT_SKULL_STRIPPED,
        WarningCode.LABELS_OUTSIDE_BRAIN,
        WarningCode.LARGE_TUMOUR,
        WarningCode.TUMOUR_AT_EDGE,
        WarningCode.MANY_SMALL_PARTS,
        WarningCode.DOUBTFUL_REGISTRATION,
        WarningCode.DOUBTFUL_BRAIN,
    }
)


class CaseWarning(NamedTuple):
    """Something that does not stop the work, and that whoever uses the result must know."""

    code: WarningCode
    message: str


def refuse_serious(warnings: Iterable[tuple[str, str]]) -> None:
    """Raise CaseError where a warning, code and message, is a serious one."""
    for code, message in warnings:
        if code in SERIOUS:
            raise CaseError(f"{message} (strict: the warning {code} is a failure)")


def check_volumes(volumes: Mapping[Modality, Volume]) -> None:
    """Raise CaseError for images that cannot be segmented: other grids, bad voxels, one image twice, z-scored images."""
    check_grids(volumes)
    with ThreadPoolExecutor(len(CHANNELS)) as threads:  # numpy computes outside the interpreter's lock
        list(threads.map(lambda modality: check_voxels(volumes[modality], modality), CHANNELS))
    check_all_different(volumes, "images")


def check_all_different(volumes: Mapping[Modality, Volume], kind: str) -> None:
    """Raise CaseError for two modalities that have the same voxels. kind: what the volumes are called in messages."""
    for one, other in itertools.combinations(CHANNELS, 2):
        if _same_voxels(volumes[one].voxels, volumes[other].voxels):
            raise CaseError(
                f"{volumes[other].path}: has the same voxels as {volumes[one].path}; "
                f"{one.display} and {other.display} must be two different {kind}"
            )


def brain_mask(volumes: Mapping[Modality, Volume]) -> npt.NDArray[np.bool_]:
    """[I, J, K]: whatever is above 0 in any modality."""
    first, *others = (volumes[modality].brain for modality in CHANNELS)
    brain = first.copy(order="K")
    for other in others:
        brain |= other
    return brain


def case_warnings(volumes: Mapping[Modality, Volume], geometry: Geometry) -> list[CaseWarning]:
    """The warnings about images that can be segmented."""
    return [
        *_header_warnings(volumes[Modality.FLAIR]),
        *_rounded_grid_warnings(volumes),
        *modality_name_warnings(volumes),
        *_background_warnings(volumes),
        *(_stripping_warnings(volumes) or _different_brain_warnings(volumes)),
        *_resampling_warnings(geometry.x.spacing_mm, geometry.y.spacing_mm),
        *_extent_warnings(geometry),
        *_thickness_warnings(geometry.slice_spacing_mm),
    ]


def grid_warnings(grids: Mapping[Modality, Grid]) -> list[CaseWarning]:
    """The warnings that headers and file names give without a voxel."""
    flair = grids[Modality.FLAIR]
    x_mm, y_mm, z_mm = (flair.spacing_mm[axis] for axis in np.argsort(orientation_to_network(flair.affine)[:, 0]))
    return [
        *_header_warnings(flair),
        *_rounded_grid_warnings(grids),
        *modality_name_warnings(grids),
        *_resampling_warnings(x_mm, y_mm),
        *_thickness_warnings(z_mm),
    ]


def voxel_litres(affine: npt.NDArray[np.float64]) -> float:
    """Volume of one voxel."""
    return float(abs(np.linalg.det(affine[:3, :3]))) * 1e-6


def check_grids(volumes: Mapping[Modality, Grid]) -> None:
    """Every modality must share FLAIR's shape, and its affine to within a tenth of a voxel at every corner of the volume."""
    flair, *others = CHANNELS
    different = [modality for modality in others if not same_grid(volumes[modality], volumes[flair])]
    if not different:
        return
    reference = flair
    if different == others and all(same_grid(volumes[modality], volumes[others[0]]) for modality in others):
        reference, different = others[0], [flair]  # three agree: the fourth is the odd one
    apart = _apart_in_words([volumes[modality] for modality in different], volumes[reference])
    raise CaseError(
        f"{volumes[different[0]].path}: {', '.join(modality.display for modality in different)} not on the grid of "
        f"{reference.display} ({volumes[reference].path}){apart}; register and resample the four images to one grid first",
        details=_grids_table([(modality.display, volumes[modality]) for modality in (reference, *different)]),
    )


def check_one_grid(volume: Grid, other: Grid, *, names: tuple[str, str]) -> list[CaseWarning]:
    """Raise CaseError for two volumes that are not on one grid; warn of two that lie more than rounding apart.

    names: of the two, such as segmentation and FLAIR.
    """
    if not same_grid(volume, other):
        apart = _apart_in_words([volume], other)
        raise CaseError(
            f"{volume.path}: {names[0]} not on the grid of {names[1]} ({other.path}){apart}; resample it to that grid by "
            "nearest neighbour first",
            details=_grids_table(list(zip(names, (volume, other), strict=True))),
        )
    distance_mm = farthest_corner_mm(volume.affine, other.affine, other.shape)
    if is_rounding(distance_mm, other.affine):
        return []
    message = (
        f"{volume.path}: {names[0]} and {names[1]} differ by up to {distance_mm:.2g} mm at the corners, less than a tenth of a "
        "voxel; taken for one grid"
    )
    return [CaseWarning(WarningCode.GRIDS_ROUNDED, message)]


def same_grid(volume: Grid, other: Grid) -> bool:
    """Whether two volumes have one shape, and their affines place every corner within a tenth of a voxel."""
    if volume.shape != other.shape:
        return False
    return is_same_place(farthest_corner_mm(volume.affine, other.affine, volume.shape), other.affine)


def _apart_in_words(volumes: Sequence[Grid], other: Grid) -> str:
    distances = [farthest_corner_mm(each.affine, other.affine, other.shape) for each in volumes if each.shape == other.shape]
    return f": corners up to {max(distances):.3g} mm apart" if distances else ""


_MOST_EXTRA_DIGITS: Final = 9


def _grids_table(volumes: Sequence[tuple[str, Grid]]) -> tuple[str, ...]:
    """Rows in as many digits as show that the grids differ."""
    n_grids = len({(volume.shape, volume.affine.tobytes()) for _, volume in volumes})
    for extra_digits in range(_MOST_EXTRA_DIGITS):
        cells = [_grid_in_words(volume, extra_digits) for _, volume in volumes]
        if len(set(cells)) == n_grids:
            break
    rows = [("", "shape", "spacing mm", "voxel 0 at mm (R, A, S)", "axes")]
    rows += [(name, *words) for (name, _), words in zip(volumes, cells, strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return tuple("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _grid_in_words(volume: Grid, extra_digits: int) -> tuple[str, str, str, str]:
    shape = " x ".join(str(n) for n in volume.shape)
    spacing = " x ".join(f"{size:.{4 + extra_digits}g}" for size in volume.spacing_mm)
    origin = ", ".join(f"{value + 0.0:.{6 + extra_digits}g}" for value in volume.affine[:3, 3])
    axes = " ".join(
        "(" + ", ".join(f"{value + 0.0:.{3 + extra_digits}g}" for value in column) + ")"
        for column in (volume.affine[:3, :3] / volume.spacing_mm).T
    )
    return shape, spacing, origin, axes


# A label map has a few whole numbers; an MRI hundreds of intensities.
_FEW_VALUES: Final = 8
_SAMPLED: Final = 997  # every so many voxels; a prime, so that no axis is met in step


def check_voxels(volume: Volume, modality: Modality) -> None:
    """Raise CaseError for voxels that are those of no MRI, or have no background of 0."""
    where = f"{volume.path} ({modality.display})"
    voxels, brain = volume.voxels.T, volume.brain.T  # in the order in which they lie in memory
    if voxels.dtype.kind == "f" and (bad := voxels.size - int(np.count_nonzero(np.isfinite(voxels)))):
        raise CaseError(f"{where}: {bad} of {voxels.size} voxels are NaN or infinite; replace them, for background with 0")
    n_brain = int(np.count_nonzero(brain))
    if n_brain == 0:
        raise CaseError(f"{where}: no voxel is above 0; this is not an MRI intensity image")
    few = _few_values(voxels, brain)
    if few.size == 1 and n_brain < voxels.size:
        raise CaseError(f"{where}: all its voxels above 0 are {few[0]:g}; this is a mask, not an MRI intensity image")
    if few.size > 1:
        values = ", ".join(f"{value:g}" for value in few)
        raise CaseError(f"{where}: its voxels above 0 hold only {values}, as a label map does; give the MRI intensity image")
    if reason := why_background_is_unusable(voxels):
        raise CaseError(f"{where}: {reason}")


def _few_values(voxels: npt.NDArray[Any], brain: npt.NDArray[np.bool_]) -> npt.NDArray[np.generic]:
    """The values above 0 where they are as few as those of a label map; else none."""
    sample = voxels.reshape(-1)[::_SAMPLED]
    if len(set(sample[sample > 0].tolist())) > _FEW_VALUES:  # tells nearly every MRI
        return voxels.reshape(-1)[:0]
    different = np.unique(voxels[brain])
    return different if different.size <= _FEW_VALUES else different[:0]


def _same_voxels(voxels: npt.NDArray[Any], others: npt.NDArray[Any]) -> bool:
    """Whether two volumes are equal; the middle plane tells most apart at once."""
    if voxels.shape != others.shape:
        return False
    middle = voxels.shape[2] // 2
    return np.array_equal(voxels[..., middle], others[..., middle]) and np.array_equal(voxels, others)


_FORMS_AGREE_MM: Final = 0.5  # float32 quaternions round; half a voxel of the BraTS grid is no rounding
_SKEWED_DEGREES: Final = 1.0  # the rounding of headers is far below; a brain skewed by less is as others
_THICK_SLICE_MM: Final = 2.0
# In ten BraTS 2021 cases the outlines agree to Dice 0.999 and more; those of two patients to no more than 0.944
# (tests/benchmarks/brains.py, as for the figures below).
_SAME_BRAIN_DICE: Final = 0.95
# Brains of ten BraTS 2021 cases: 1.25 to 1.73 litres in 14 to 19 % of their grid, 19 voxels or more from its sides. A head has
# more of all three: air that is not 0 fills the grid, and where it is 0 skin and skull remain.
_LARGEST_BRAIN_LITRES: Final = 2.2
_FILLED_SHARE: Final = 0.65
_BORDER_SHARE: Final = 0.02


def _header_warnings(flair: Grid) -> list[CaseWarning]:
    warnings = []
    if not flair.has_orientation:
        message = (
            f"{flair.path}: the header does not say how the voxels lie in the patient (sform and qform codes are 0); "
            "taken as x to the left, y to the front, z upwards"
        )
        warnings.append(CaseWarning(WarningCode.NO_ORIENTATION, message))
    if flair.mended:
        warnings.append(CaseWarning(WarningCode.QFORM_MENDED, f"{flair.path}: {flair.mended}"))
    if flair.forms_differ_mm > _FORMS_AGREE_MM:
        message = (
            f"{flair.path}: sform and qform place the image up to {flair.forms_differ_mm:.4g} mm apart; the sform was used, "
            "other programs may take the qform"
        )
        warnings.append(CaseWarning(WarningCode.FORMS_DISAGREE, message))
    if (degrees := skew_degrees(flair.affine)) > _SKEWED_DEGREES:
        message = (
            f"{flair.path}: its voxel axes are {degrees:.0f} degrees off right angles (a sheared affine), and the network sees "
            "the brain skewed; resample the four images to a grid without shear, as rigid registration gives"
        )
        warnings.append(CaseWarning(WarningCode.SHEARED, message))
    return warnings


def _background_warnings(volumes: Mapping[Modality, Volume]) -> list[CaseWarning]:
    """Images whose background is nearly 0, with the cause."""
    return [
        CaseWarning(WarningCode.BACKGROUND_NOT_ZERO, f"{volume.path} ({modality.display}): {remark}")
        for modality, volume in volumes.items()
        for remark in background_remarks(volume)
    ]


def _rounded_grid_warnings(volumes: Mapping[Modality, Grid]) -> list[CaseWarning]:
    """A note on the image that lies farthest from FLAIR, where that is more than rounding."""
    flair, *others = CHANNELS
    grid = volumes[flair]
    farthest = max(others, key=lambda name: farthest_corner_mm(volumes[name].affine, grid.affine, grid.shape))
    return check_one_grid(volumes[farthest], grid, names=(farthest.display, flair.display))


def _resampling_warnings(x_mm: float, y_mm: float) -> list[CaseWarning]:
    if at_1_mm([x_mm, y_mm]):
        return []
    message = (
        f"in-plane spacing is {x_mm:g} x {y_mm:g} mm, not 1 mm: slices were resampled for the network and its probabilities "
        "resampled back"
    )
    return [CaseWarning(WarningCode.RESAMPLED, message)]


def _extent_warnings(geometry: Geometry) -> list[CaseWarning]:
    if max(geometry.x.brain_mm, geometry.y.brain_mm) <= FRAME:
        return []
    message = (
        f"the images reach over {geometry.x.brain_mm:.0f} x {geometry.y.brain_mm:.0f} mm in plane, more than the "
        f"network's {FRAME} mm frame; what lies outside is labelled background"
    )
    return [CaseWarning(WarningCode.BRAIN_OUTSIDE_FRAME, message)]


def _thickness_warnings(z_mm: float) -> list[CaseWarning]:
    if z_mm <= _THICK_SLICE_MM:
        return []
    message = f"slices are {z_mm:g} mm apart; the network was trained on 1 mm, expect a poorer result"
    return [CaseWarning(WarningCode.THICK_SLICES, message)]


def modality_name_warnings(volumes: Mapping[Modality, Grid]) -> list[CaseWarning]:
    """Files that may stand under the wrong option, which gives a plausible wrong result."""
    warnings = []
    for modality in CHANNELS:
        path = volumes[modality].path
        named = modality_in_name(path)
        if named not in (None, modality):
            message = f"{path}: given as {modality.display}, but its name says {named.display}; a swap gives wrong labels"
            warnings.append(CaseWarning(WarningCode.MODALITY_NAME, message))
    return warnings


def _different_brain_warnings(volumes: Mapping[Modality, Volume]) -> list[CaseWarning]:
    """Images that may come from different patients, or were not stripped alike."""
    flair, *others = CHANNELS
    brain = volumes[flair].brain
    warnings = []
    for modality in others:
        other = volumes[modality].brain
        dice = dice_of(*(int(np.count_nonzero(mask)) for mask in (brain & other, brain, other)))
        if dice < _SAME_BRAIN_DICE:
            message = (
                f"{volumes[modality].path}: the outline of the brain in {modality.display} is not that in {flair.display} "
                f"(Dice {dice:.2f}); are they of one patient, registered and stripped alike?"
            )
            warnings.append(CaseWarning(WarningCode.DIFFERENT_BRAINS, message))
    return warnings


def _stripping_warnings(volumes: Mapping[Modality, Volume]) -> list[CaseWarning]:
    """The first image that shows more than a brain; one suffices to make the labels worthless."""
    for modality in CHANNELS:
        volume = volumes[modality]
        if (reason := why_unstripped(volume.brain, volume.affine)) is not None:
            message = (
                f"{volume.path}: {modality.display} does not look skull-stripped: {reason}; strip all four images first, "
                "with a background of exactly 0, or the labels mean nothing"
            )
            return [CaseWarning(WarningCode.NOT_SKULL_STRIPPED, message)]
    return []


def why_unstripped(brain: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64]) -> str | None:
    """Why the voxels above 0, [I, J, K], are more than a brain; None where they may be one."""
    n_brain = int(np.count_nonzero(brain))
    litres = n_brain * voxel_litres(affine)
    if litres > _LARGEST_BRAIN_LITRES:
        return f"its non-zero voxels fill {litres:.1f} litres, more than any brain"
    if n_brain > _FILLED_SHARE * brain.size:
        return f"{n_brain / brain.size:.0%} of its voxels are not 0"
    turned = np.asarray(apply_orientation(brain, orientation_to_network(affine)))
    border = np.concatenate([turned[[0, -1]].ravel(), turned[:, [0, -1]].ravel()])
    if border.mean() > _BORDER_SHARE:
        return f"{border.mean():.0%} of the voxels on the sides of the volume are not 0"
    return None
