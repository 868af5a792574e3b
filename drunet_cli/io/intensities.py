"""The intensities of an image: a background that is 0, or can be set right, and the normalised slices for the network."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.errors import CaseError, name_file
from drunet_cli.host import granted_cpus
from drunet_cli.io.geometry import FRAME, Box, Geometry, box_of
from drunet_cli.io.nifti import Volume

SliceStack: TypeAlias = npt.NDArray[np.uint8]  # [Z, X, Y, 4], channels FLAIR, T1ce, T1, T2

# A brain fills a fifth of the BraTS grid and the background the rest. Cropped to its box, a brain still leaves half of the box;
# no intensity of an MRI fills more than a few hundredths.
_BACKGROUND_SHARE: Final = 1 / 3
# Linear interpolation leaves no negative voxel; a few, with whatever values, cost a few voxels of a brain.
_NEGATIVE_SHARE: Final = 0.05
# Ringing of splines and Lanczos in real cases, stored as any type, gave 0.001 to 0.003, and in small golden images up to 0.013.
# The same cases z-scored by mean or median, also before splines, gave 0.23 and more.
_RINGING_SHARE: Final = 0.07
# Ringing fades within a few voxels: what is above 0 there is no brighter than the negative values around it.
_LOBE_VOXELS: Final = 3
# The outermost voxels of a brain are as dark as ringing where they are partly background.
_EDGE_VOXELS: Final = 1
_SAMPLED: Final = 997  # every so many voxels; a prime, so that no axis is met in step


def mend_rounded_zero(volume: Volume) -> Volume:
    """The volume with a background of 0 where the scaling of its file rounded 0 to another value.

    Scaled integers that span 0 need not hold 0 itself. What 0 became is less than one step of the scaling away from 0, and
    fills the background.
    """
    step, intercept = volume.header.get_slope_inter()
    if not intercept or volume.header.get_data_dtype().kind == "f" or volume.source is None:
        return volume
    if (background := background_value(volume.voxels)) is None:
        return volume
    value, _ = background
    if abs(value) > _ROUNDING_STEPS * abs(step):
        return volume
    voxels = np.where(volume.voxels == value, 0, volume.voxels)
    return replace(volume, voxels=voxels, rounded_zero=value)


# Less than 1, so that an integer beside an exact 0 is none. To the nearest integer it is half a step.
_ROUNDING_STEPS: Final = 0.999


def without_ringing(volume: Volume) -> Volume:
    """The volume with 0 in place of the small values above 0 that ringing leaves in the background.

    Ringing leaves values of both signs, and its negative ones are background in any case. A voxel above 0 is ringing where
    - it is no brighter than a negative voxel near it is dark,
    - it reaches the sides of the volume through such voxels and negative ones, and
    - it does not touch what is left, the brain.
    A brain has no negative voxels, so this ends at its edge, however dark the brain is. An image without ringing stays as it
    is.

    Tried on three images of a BraTS case, against the mask that linear resampling gives: of 76,000 to 2,804,000 voxels above 0
    beyond the brain 12 to 716 were left after shifts by cubic splines and Lanczos, and 4 % after slices of 5 mm were made
    slices of 1 mm. At most 0.08 % of the brain was lost.
    """
    if not _rings(volume.voxels):
        return volume
    depth = ndimage.maximum_filter(np.maximum(-volume.voxels.astype(np.float32), 0), size=2 * _LOBE_VOXELS + 1)
    parts, _ = ndimage.label(np.pad(volume.voxels <= depth, 1, constant_values=True))
    inside = (parts != parts[0, 0, 0])[1:-1, 1:-1, 1:-1]
    brain = ndimage.binary_dilation(inside, iterations=_EDGE_VOXELS)
    voxels = volume.voxels.copy()
    voxels[~brain & (voxels > 0)] = 0
    return replace(volume, voxels=voxels)


def background_remarks(volume: Volume) -> list[str]:
    """The warning about a background that is nearly 0, with its cause; none where it is 0."""
    remarks = []
    if volume.rounded_zero:
        remarks.append(
            f"the background is {volume.rounded_zero:.3g}, as the scaling of the file rounds 0, and was taken for 0; "
            "set it to 0 and save the image without scaling, as float or as whole numbers"
        )
    if _rings(volume.voxels):
        n_negative = int(np.count_nonzero(volume.voxels < 0))
        share = n_negative / int(np.count_nonzero(volume.voxels))
        remarks.append(
            f"{share:.0%} of its non-zero voxels are small and negative, as interpolation by splines, sinc or Lanczos "
            "leaves them around a brain; taken for background, with the small values above 0 around the brain: set all "
            "voxels outside the brain to 0, by its mask, or resample linearly"
        )
    return remarks


def background_value(voxels: npt.NDArray[Any]) -> tuple[float, float] | None:
    """The value other than 0 that fills more than a third of the voxels, and its share; None where none does."""
    sample = voxels.reshape(-1)[:: _stride(voxels)]
    values, counts = np.unique(sample[sample != 0], return_counts=True)
    if values.size == 0:
        return None
    value = values[counts.argmax()]
    share = int(np.count_nonzero(voxels == value)) / voxels.size
    return (float(value), share) if share > _BACKGROUND_SHARE else None


def _stride(voxels: npt.NDArray[Any]) -> int:
    return _SAMPLED if voxels.size > _SAMPLED * 100 else 1


def why_background_is_unusable(voxels: npt.NDArray[Any]) -> str | None:
    """Why an image has no background of 0, and the remedy for this cause; None where it has one, or nearly.

    Three causes are told apart:
    - One value fills the background. It is the value of more than a third of all voxels.
    - Splines, sinc, Lanczos and scaled integers leave small negative values around a brain. See `_negatives`.
    - After z-scoring the brain itself is negative. It is whatever is left.
    """
    background = background_value(voxels)
    others = voxels if background is None else voxels[voxels != background[0]]
    n_negative, is_ringing = _negatives(others)
    share = n_negative / max(1, int(np.count_nonzero(others)))
    is_z_scored = share > _NEGATIVE_SHARE and not is_ringing
    if background is not None:
        value, filled = background
        found = f"one value, {value:.6g}, fills {filled:.0%} of the voxels, as a background does that is not 0"
        if is_z_scored:
            remedy = f"subtract {value:.6g} from all voxels" if _is_below(others, value) else "give the image as it was before"
            return f"{found}, and {share:.0%} of the others are negative, as after z-scoring; {remedy}"
        return f"{found}; set it to 0"
    if not is_z_scored:
        return None
    negative = voxels[voxels < 0]
    values, counts = np.unique(negative[:: _stride(negative)], return_counts=True)
    if counts.max() > counts.sum() / 2:
        value = values[counts.argmax()]
        return f"one value, {value:.6g}, is that of most negative voxels, as a background outside the scan has; set it to 0"
    return (
        f"{share:.0%} of its non-zero voxels are negative, as after z-scoring; the network's normalisation takes "
        "all those as background: give the image as it was before, or add a constant to the brain and keep the background 0"
    )


def _rings(voxels: npt.NDArray[Any]) -> bool:
    """Whether more negative voxels than a few are ringing."""
    n_negative, is_ringing = _negatives(voxels)
    return is_ringing and n_negative > _NEGATIVE_SHARE * int(np.count_nonzero(voxels))


def _is_below(others: npt.NDArray[Any], value: float) -> bool:
    """Whether the other voxels, but for ringing, are above a value."""
    n_negative, is_ringing = _negatives(others.astype(np.float64) - value)
    return n_negative == 0 or is_ringing


def _negatives(voxels: npt.NDArray[Any]) -> tuple[int, bool]:
    """How many voxels are negative, and whether they are ringing.

    Ringing is small beside a brain: the negative voxels sum to a small share of the sum of those above 0. Z-scoring makes the
    two sums equal, whatever the image, since it makes the mean 0. Sums, unlike counts and percentiles, hardly change where
    a spline leaves values of either sign, down to 1e-40, in all of the background.
    """
    if voxels.size == 0 or voxels.min() >= 0:
        return 0, False
    negative = voxels[voxels < 0]
    sum_below = -float(negative.sum(dtype=np.float64))
    sum_above = float(voxels.sum(dtype=np.float64)) + sum_below
    return negative.size, sum_below < _RINGING_SHARE * sum_above


def normalise(voxels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale brain voxels to the 0-255 range that the published weights were trained on.

    voxels: [X, Y, Z] in network orientation, any intensity scale; background is 0 and stays 0, negative voxels become 0.
    Equal to the published code to the byte: its sums run over the voxels in this order, in float64, and it truncates.
    Raises CaseError when no voxel is above 0, or all that are have the same value.
    Source: convert_nii_to_png.py. Its comment says median and IQR; its code uses mean and population SD of voxels above 0.
    """
    pixels = np.zeros(voxels.shape, dtype=np.uint8)
    box, inner = _scaled_box(voxels, voxels > 0)
    pixels[box] = inner
    return pixels


def network_slices(volumes: Sequence[Volume], geometry: Geometry) -> SliceStack:
    """Four volumes, in the network's channel order, as slices [Z, 240, 240, 4].

    Statistics are taken over the whole volume; where it is resampled, over its frames, as if it had come on the 1 mm grid.
    Raises CaseError naming the volume that cannot be normalised.
    """
    stack = np.zeros((geometry.n_slices, FRAME, FRAME, len(volumes)), dtype=np.uint8)

    def place(channel: int) -> None:
        volume = volumes[channel]
        turned = geometry.turned(volume.voxels)
        with name_file(volume.path):
            if geometry.resampled:
                stack[..., channel] = np.moveaxis(normalise(geometry.frames(turned)), 2, 0)
                return
            (xs, ys, zs), inner = _scaled_box(turned, geometry.turned(volume.brain))
        (frame_x, of_x), (frame_y, of_y) = geometry.x.on_frame(xs), geometry.y.on_frame(ys)
        stack[zs, frame_x, frame_y, channel] = np.moveaxis(inner[of_x, of_y], 2, 0)

    # numpy computes outside the interpreter's lock; more threads than CPUs only fill memory.
    with ThreadPoolExecutor(min(len(volumes), granted_cpus())) as threads:
        list(threads.map(place, range(len(volumes))))
    return stack


def _scaled_box(voxels: npt.NDArray[Any], brain: npt.NDArray[np.bool_]) -> tuple[Box, npt.NDArray[np.uint8]]:
    """The smallest box that holds every voxel above 0, and its pixels; what lies outside is 0. brain: voxels above 0."""
    box = box_of(brain)
    if box is None:
        raise CaseError("no voxel is above 0")
    inner = np.ascontiguousarray(voxels[box])  # so that the values below stand in the order in which the published code sums
    inside = inner > 0
    values = inner[inside]
    largest = values.max()
    mean, scale = _statistics(values)
    if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0) or values.min() == largest:
        raise CaseError("its voxels above 0 have no usable spread")
    if inner.dtype in (np.uint8, np.int16, np.uint16):
        # As many different values as voxels in a few slices: scale each once.
        table = _pixels(np.arange(float(largest) + 1), mean, scale)
        table[0] = 0
        return box, table[inner if inner.min() >= 0 else np.where(inside, inner, 0)]
    pixels = np.zeros(inner.shape, dtype=np.uint8)
    pixels[inside] = _pixels(values.astype(np.float64), mean, scale)
    return box, pixels


def _statistics(values: npt.NDArray[Any]) -> tuple[np.float64, np.float64]:
    """Mean, and 3 / 128 of the population SD, in float64 and to the last bit as numpy's mean and std; but in one array."""
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = values.astype(np.float64)
        mean = deviations.mean()
        deviations -= mean
        deviations *= deviations
        return mean, 3 * np.sqrt(deviations.mean()) / 128


def _pixels(values: npt.NDArray[np.float64], mean: np.float64, scale: np.float64) -> npt.NDArray[np.uint8]:
    return np.clip((values - mean) / scale + 127, 0, 255).astype(np.uint8)
