"""One case end to end: read and check, predict, describe."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import ClassMap, Modality, volumes_ml, voxel_counts
from drunet_cli.errors import MisuseError
from drunet_cli.io.case import Case, case_of
from drunet_cli.io.checks import CaseWarning, WarningCode, voxel_litres
from drunet_cli.io.geometry import Geometry
from drunet_cli.io.nifti import Header
from drunet_cli.io.slices import SliceStack
from drunet_cli.io.volumes import CaseImages, InputFile, images_of, read_images
from drunet_cli.network.engine import Engine
from drunet_cli.segmentation import sidecar
from drunet_cli.segmentation.predict import NO_POSTPROCESSING, Plan, Postprocessing, Prediction, postprocess, predict
from drunet_cli.weights.checkpoint import Checkpoint

Image: TypeAlias = str | os.PathLike[str] | npt.NDArray[Any]


@dataclass(frozen=True)
class Views:
    """What a picture shows under the labels: voxels [I, J, K] as stored, and the affine of FLAIR."""

    flair: npt.NDArray[Any]
    t1ce: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]


@dataclass(frozen=True)
class PreparedCase:
    """A case that has passed every check, as the network takes it.

    header, voxel_ml: of FLAIR, whose geometry the label map gets. inputs: the files by modality, none where arrays were given.
    """

    case: Case
    header: Header
    voxel_ml: float
    inputs: Mapping[str, InputFile]
    geometry: Geometry
    slices: SliceStack
    views: Views | None
    warnings: tuple[CaseWarning, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A predicted case.

    class_map: class indices after what follows the network, in FLAIR's own axes [I, J, K]. counts: voxels by class and region.
    postprocessed: what that changed, None where nothing was asked for.
    """

    prepared: PreparedCase
    prediction: Prediction
    class_map: ClassMap
    postprocessed: Mapping[str, Any] | None
    counts: Mapping[str, int]
    warnings: tuple[CaseWarning, ...]
    seconds: float


def prepare(case: Case, *, keep_views: bool = False) -> PreparedCase:
    """Read a case, check it, and make the network's slices. No torch. keep_views: for a picture.

    Raises CaseError for whatever cannot be segmented.
    """
    begin = time.perf_counter()
    images = read_images(case)
    return _prepared(images, images.inputs, keep_views=keep_views, begin=begin)


def prepare_arrays(arrays: Mapping[Modality, npt.NDArray[Any]], affine: npt.ArrayLike, *, name: str) -> PreparedCase:
    """The same of arrays [I, J, K]. affine: 4 x 4, voxel indices to RAS millimetres. No inputs are recorded."""
    begin = time.perf_counter()
    return _prepared(images_of(arrays, affine, name=name), {}, keep_views=True, begin=begin)


def prepare_given(images: Mapping[Modality, Image], affine: npt.ArrayLike | None, *, name: str | None) -> PreparedCase:
    """Four files, or four arrays with their affine.

    Raises CaseError, MisuseError where files and arrays are mixed, or an affine is missing or too much, TypeError for what is
    neither.
    """
    for modality, image in images.items():
        if not isinstance(image, str | os.PathLike | np.ndarray):
            raise TypeError(
                f"{modality}: give a path or a numpy array, not {type(image).__name__} "
                "(of an image that nibabel loaded: image.get_fdata(), with affine=image.affine)"
            )
    arrays = {modality: image for modality, image in images.items() if isinstance(image, np.ndarray)}
    if not arrays:
        if affine is not None:
            raise MisuseError("affine: files have their own; leave it out")
        files = {modality: Path(image) for modality, image in images.items() if not isinstance(image, np.ndarray)}
        return prepare(case_of(files, name=name), keep_views=True)
    if len(arrays) < len(images):
        raise MisuseError("the four images are files or arrays, not some of each")
    if affine is None:
        raise MisuseError("arrays need an affine: 4 x 4, voxel indices to RAS millimetres")
    return prepare_arrays(arrays, affine, name=name or "case")


def _prepared(images: CaseImages, inputs: Mapping[str, InputFile], *, keep_views: bool, begin: float) -> PreparedCase:
    reference = images.reference
    flair, t1ce = (images.volumes[modality].voxels for modality in (Modality.FLAIR, Modality.T1CE))
    return PreparedCase(
        case=images.case,
        header=reference.header,
        voxel_ml=voxel_litres(reference.affine) * 1000,
        inputs=inputs,
        geometry=images.geometry,
        slices=images.slices(),
        views=Views(flair, t1ce, reference.affine) if keep_views else None,
        warnings=images.warnings,
        seconds=time.perf_counter() - begin,
    )


def segment(
    prepared: PreparedCase,
    engines: Sequence[Engine],
    *,
    plan: Plan,
    postprocessing: Postprocessing = NO_POSTPROCESSING,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Segmentation:
    """Predict one prepared case. engines: one for each set of weights. Raises DeviceError when not even one slice fits."""
    begin = time.perf_counter()
    prediction = predict(prepared.slices, prepared.geometry, engines, plan=plan, on_progress=on_progress)
    done = postprocess(prediction.class_map, postprocessing, voxel_ml=prepared.voxel_ml)
    counts = voxel_counts(done.class_map)
    warnings = prepared.warnings
    if counts["WT"] == 0:
        empty = CaseWarning(WarningCode.EMPTY_RESULT, "no tumour was found: every voxel is labelled background")
        warnings = (*warnings, empty)
    return Segmentation(
        prepared=prepared,
        prediction=prediction,
        class_map=done.class_map,
        postprocessed=None if postprocessing == NO_POSTPROCESSING else done.described(),
        counts=counts,
        warnings=warnings,
        seconds=time.perf_counter() - begin,
    )


def describe(
    segmentation: Segmentation, engine: Engine, checkpoints: Sequence[Checkpoint], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What the sidecar holds of a predicted case, but for what is known only once it is written.

    settings: those of sidecar.describe_settings.
    """
    prepared = segmentation.prepared
    weights = [sidecar.describe_weights(checkpoint) for checkpoint in checkpoints]
    document = {
        "schema": sidecar.SCHEMA,
        "case": prepared.case.name,
        "volumes_ml": volumes_ml(segmentation.counts, prepared.voxel_ml),
        "voxels": segmentation.counts,
        "warnings": sidecar.describe_warnings(segmentation.warnings),
        "weights": weights[0] if len(weights) == 1 else weights,
        "inputs": sidecar.describe_inputs(prepared.inputs),
        "geometry": sidecar.describe_geometry(prepared.geometry),
        "device": engine.device,
        "device_name": engine.device_name,
        "settings": {
            "engine": engine.name,
            "precision": engine.precision,
            "batch_size": engine.batch_size,
            "threads": engine.threads,
            **settings,
        },
        "versions": sidecar.describe_versions(engine),
        "seconds": {"read": round(prepared.seconds, 3), "network": round(segmentation.seconds, 3)},
    }
    return document if segmentation.postprocessed is None else {**document, "postprocessing": segmentation.postprocessed}
