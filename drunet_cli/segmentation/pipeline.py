"""One case on its way: four files or arrays, checked and sliced, predicted, and cleaned up."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, ClassMap, Modality, voxel_counts
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning, WarningCode, refuse_serious, voxel_litres
from drunet_cli.io.geometry import Geometry
from drunet_cli.io.inputs import InputFile
from drunet_cli.io.intensities import SliceStack
from drunet_cli.io.nifti import Header
from drunet_cli.io.volumes import CaseImages, images_of, read_images
from drunet_cli.prepare.record import PreparedFrom, needed_origin, origin_of
from drunet_cli.segmentation.label_map import Sides, clean_up, label_map_warnings, measure, sides_of
from drunet_cli.segmentation.predict import Ensemble, Prediction, predict

if TYPE_CHECKING:
    from drunet_cli.prepare.dicom_seg import SegmentedSeries  # of DICOM segmentation objects alone

_LOG: Final = logging.getLogger("drunet_cli")


@dataclass(frozen=True)
class Views:
    """The images that pictures show under the labels: voxels [I, J, K] as stored, and the affine of FLAIR."""

    images: Mapping[Modality, npt.NDArray[Any]]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CheckedCase:
    """A case that has been read and has passed every check, as the network takes it.

    header, voxel_ml: of FLAIR, whose geometry the label map gets. inputs: the files by modality; empty for arrays.
    brain: [I, J, K], where any of the four images is above 0. views: kept for pictures. seconds: how long reading took.
    origin: the raw scans, where drunet has prepared the images. series: those that DICOM segmentation objects will refer to.
    """

    case: Case
    header: Header
    voxel_ml: float
    inputs: Mapping[str, InputFile]
    geometry: Geometry
    brain: npt.NDArray[np.bool_]
    slices: SliceStack
    views: Views | None
    warnings: tuple[CaseWarning, ...]
    seconds: float
    origin: PreparedFrom | None = None
    series: Mapping[Modality, "SegmentedSeries"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PredictedCase:
    """A case with its label map.

    class_map: class indices [I, J, K] in FLAIR's own axes, cleaned up. cleaned: what the clean-up changed, None where none was
    asked for. counts: voxels by class and region. sides: of the brain that the tumour lies on, None where that is not known.
    new_warnings: those that the prediction adds to the checked case's. seconds: how long prediction took.
    """

    checked: CheckedCase
    prediction: Prediction
    class_map: ClassMap
    cleaned: Mapping[str, int] | None
    counts: Mapping[str, int]
    sides: Sides | None
    new_warnings: tuple[CaseWarning, ...]
    seconds: float

    @property
    def warnings(self) -> tuple[CaseWarning, ...]:
        """Everything remarkable about the images and the result."""
        return (*self.checked.warnings, *self.new_warnings)


def read_case(
    case: Case,
    *,
    shown: Collection[Modality] = (),
    strict: bool = False,
    needs_origin: bool = False,
    referred_to: Mapping[Modality, Path] = MappingProxyType({}),
) -> CheckedCase:
    """Read the files of a case, check them, and make the network's slices.

    shown: the images that are kept for pictures. referred_to: raw scans from DICOM, whose series are looked at too.
    Raises CaseError for whatever cannot be segmented, and, where it is to be strict, for a serious warning; and for a case that
    needs its origin or a series and has none.
    """
    begin = time.perf_counter()
    images = read_images(case)
    origin = needed_origin(case, images.inputs) if needs_origin else origin_of(case, images.inputs)
    if origin is not None:  # doubts about its preparation are doubts about its label map
        images = replace(images, warnings=(*origin.warnings, *images.warnings))
    series = {}
    if origin is not None and referred_to:
        from drunet_cli.prepare.dicom_seg import series_of_space

        series = {modality: series_of_space(scan, origin.spaces[modality]) for modality, scan in referred_to.items()}
    checked = _slice_images(images, images.inputs, shown=shown, strict=strict, begin=begin)
    return replace(checked, origin=origin, series=series)


def case_of_arrays(
    arrays: Mapping[Modality, npt.NDArray[Any]], affine: npt.ArrayLike, *, name: str, strict: bool = False
) -> CheckedCase:
    """Check four arrays [I, J, K] and make the network's slices. affine: 4 x 4, voxel indices to RAS millimetres.

    Raises CaseError as `read_case` does.
    """
    begin = time.perf_counter()
    arrays = {modality: voxels.copy() for modality, voxels in arrays.items()}  # pictures are drawn later
    return _slice_images(images_of(arrays, affine, name=name), {}, shown=CHANNELS, strict=strict, begin=begin)


def _slice_images(
    images: CaseImages, inputs: Mapping[str, InputFile], *, shown: Collection[Modality], strict: bool, begin: float
) -> CheckedCase:
    if strict:
        refuse_serious(images.warnings)
    reference = images.reference
    views = {modality: images.volumes[modality].voxels for modality in shown}
    checked = CheckedCase(
        case=images.case,
        header=reference.header,
        voxel_ml=voxel_litres(reference.affine) * 1000,
        inputs=inputs,
        geometry=images.geometry,
        brain=images.brain,
        slices=images.slices(),
        views=Views(views, reference.affine) if views else None,
        warnings=images.warnings,
        seconds=time.perf_counter() - begin,
    )
    geometry = checked.geometry
    _LOG.info(
        "%s: %d x %d x %d voxels, axes %s, slices %.3g mm apart, %s for the network; brain %.0f mL; read in %.2f s",
        *(checked.case.name, *geometry.shape, geometry.axcodes, geometry.slice_spacing_mm, geometry.fit),
        *(np.count_nonzero(checked.brain) * checked.voxel_ml, checked.seconds),
    )
    return checked


_SIDES_UNKNOWN: Final = frozenset({WarningCode.NO_ORIENTATION, WarningCode.FORMS_DISAGREE})  # left may be right


def segment(
    checked: CheckedCase, ensemble: Ensemble, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> PredictedCase:
    """Predict a checked case and clean the result up as the ensemble's settings ask.

    on_progress: called with (slices done, slices in all). Raises DeviceError when not even one slice fits, and, where the
    settings are strict, CaseError for a label map with a serious warning.
    """
    begin = time.perf_counter()
    settings = ensemble.settings
    engines = ensemble.engines
    opened = time.perf_counter()
    prediction = predict(
        checked.slices,
        checked.geometry,
        engines,
        window=ensemble.window,
        settings=settings,
        on_progress=on_progress,
    )
    cleaned = clean_up(
        prediction.class_map,
        brain=checked.brain if settings.within_brain else None,
        postprocessing=ensemble.postprocessing,
        voxel_ml=checked.voxel_ml,
    )
    predicted = time.perf_counter()
    measures = measure(cleaned.class_map, checked.brain, checked.geometry, voxel_ml=checked.voxel_ml)
    warnings = label_map_warnings(measures)
    says_left = _SIDES_UNKNOWN.isdisjoint(warning.code for warning in checked.warnings)
    sides = sides_of(cleaned.class_map, checked.brain, checked.geometry) if says_left else None
    _LOG.info(
        "%s: the network took %.2f s (window %s), looking at the label map %.2f s",
        *(checked.case.name, predicted - opened, ensemble.window, time.perf_counter() - predicted),
    )
    if settings.strict:
        refuse_serious(warnings)
    return PredictedCase(
        checked=checked,
        prediction=prediction,
        class_map=cleaned.class_map,
        cleaned=cleaned.changes if settings.cleans_up else None,
        counts=voxel_counts(cleaned.class_map),
        sides=sides,
        new_warnings=tuple(warnings),
        seconds=time.perf_counter() - begin,
    )
