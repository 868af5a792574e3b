"""Whether volumes lie on one grid of voxels."""

from collections.abc import Mapping

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError
from drunet_cli.io.geometry import SAME_PLACE_MM, farthest_corner_mm
from drunet_cli.io.nifti import Volume


def check_grids(volumes: Mapping[Modality, Volume]) -> None:
    """Every modality must share FLAIR's shape, and its affine to within 1e-3 mm at every corner of the volume."""
    flair, *others = CHANNELS
    different = [modality for modality in others if not same_grid(volumes[modality], volumes[flair])]
    if not different:
        return
    reference = flair
    if different == others and all(same_grid(volumes[modality], volumes[others[0]]) for modality in others):
        reference, different = others[0], [flair]  # three agree: the fourth is the odd one
    rows = [("", "shape", "spacing mm", "voxel 0 at mm (R, A, S)", "axes")]
    rows += [(modality.display, *_grid_in_words(volumes[modality])) for modality in (reference, *different)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = tuple("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    raise CaseError(
        f"{volumes[different[0]].path}: {', '.join(modality.display for modality in different)} not on the grid of "
        f"{reference.display} ({volumes[reference].path}); register and resample the four images to one grid first",
        details=table,
    )


def _grid_in_words(volume: Volume) -> tuple[str, str, str, str]:
    shape = " x ".join(str(n) for n in volume.voxels.shape)
    spacing = " x ".join(f"{size:.4g}" for size in volume.spacing_mm)
    origin = ", ".join(f"{value + 0.0:.6g}" for value in volume.affine[:3, 3])
    axes = " ".join(
        "(" + ", ".join(f"{value + 0.0:.3g}" for value in column) + ")"
        for column in (volume.affine[:3, :3] / volume.spacing_mm).T
    )
    return shape, spacing, origin, axes


def same_grid(volume: Volume, other: Volume) -> bool:
    """Whether two volumes have one shape, and their affines place every corner within 0.001 mm."""
    if volume.voxels.shape != other.voxels.shape:
        return False
    return farthest_corner_mm(volume.affine, other.affine, volume.voxels.shape) <= SAME_PLACE_MM
