"""Whether volumes lie on one grid of voxels."""

from collections.abc import Mapping, Sequence

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import SAME_PLACE_MM, farthest_corner_mm
from drunet_cli.io.nifti_header import Grid


def check_grids(volumes: Mapping[Modality, Grid]) -> None:
    """Every modality must share FLAIR's shape, and its affine to within 1e-3 mm at every corner of the volume."""
    flair, *others = CHANNELS
    different = [modality for modality in others if not same_grid(volumes[modality], volumes[flair])]
    if not different:
        return
    reference = flair
    if different == others and all(same_grid(volumes[modality], volumes[others[0]]) for modality in others):
        reference, different = others[0], [flair]  # three agree: the fourth is the odd one
    raise CaseError(
        f"{volumes[different[0]].path}: {', '.join(modality.display for modality in different)} not on the grid of "
        f"{reference.display} ({volumes[reference].path}); register and resample the four images to one grid first",
        details=_grids_table([(modality.display, volumes[modality]) for modality in (reference, *different)]),
    )


def _grids_table(volumes: Sequence[tuple[str, Grid]]) -> tuple[str, ...]:
    rows = [("", "shape", "spacing mm", "voxel 0 at mm (R, A, S)", "axes")]
    rows += [(name, *_grid_in_words(volume)) for name, volume in volumes]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return tuple("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _grid_in_words(volume: Grid) -> tuple[str, str, str, str]:
    shape = " x ".join(str(n) for n in volume.shape)
    spacing = " x ".join(f"{size:.4g}" for size in volume.spacing_mm)
    origin = ", ".join(f"{value + 0.0:.6g}" for value in volume.affine[:3, 3])
    axes = " ".join(
        "(" + ", ".join(f"{value + 0.0:.3g}" for value in column) + ")"
        for column in (volume.affine[:3, :3] / volume.spacing_mm).T
    )
    return shape, spacing, origin, axes


def grids_differ(volume: Grid, other: Grid, *, names: tuple[str, str]) -> CaseError | None:
    """What is to be said of two volumes that are not on one grid; None where they are. names: what they are."""
    if same_grid(volume, other):
        return None
    return CaseError(
        f"{volume.path}: {names[0]} not on the grid of {names[1]} ({other.path}); resample it to that grid by nearest "
        "neighbour first",
        details=_grids_table(list(zip(names, (volume, other), strict=True))),
    )


def same_grid(volume: Grid, other: Grid) -> bool:
    """Whether two volumes have one shape, and their affines place every corner within 0.001 mm."""
    if volume.shape != other.shape:
        return False
    return farthest_corner_mm(volume.affine, other.affine, volume.shape) <= SAME_PLACE_MM
