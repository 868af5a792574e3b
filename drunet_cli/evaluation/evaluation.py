"""One case: two label maps, and uncertainty maps where asked for, in; every score out."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import REGIONS, ClassMap, ReadLabels, TumourClass
from drunet_cli.errors import CaseError
from drunet_cli.evaluation.comparison import Convention, compare, mask_of
from drunet_cli.evaluation.pairs import Pair, t1_of, uncertainty_maps_of
from drunet_cli.evaluation.uncertainty import UncertaintyMap, UncertaintyScores, percentages, uncertainty_scores
from drunet_cli.io.grids import grids_differ
from drunet_cli.io.labels import class_map_of
from drunet_cli.io.nifti import Volume, load_volume

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """One pair and what is asked of it.

    tolerance_mm: of the surface Dice. uncertainty: whether the uncertainty maps beside the prediction are scored too.
    """

    pair: Pair
    convention: Convention
    labels: ReadLabels
    tolerance_mm: float
    uncertainty: bool = False


def evaluate(task: EvaluationTask) -> dict[str, Any]:
    """The JSON object of one case: its scores by region and class.

    Raises CaseError when a file cannot be read, holds no BraTS labels or no uncertainties, is absent, or is on another grid.
    """
    prediction, reference = _loaded(task.pair.prediction, task.pair.reference)
    _check_grid(prediction, reference, names=("prediction", "reference"))
    class_maps = [class_map_of(volume, task.labels)[0] for volume in (prediction, reference)]
    scores = compare(
        *class_maps,
        spacing_mm=reference.spacing_mm,
        convention=task.convention,
        tolerance_mm=task.tolerance_mm,
    )
    described = {name: _described(asdict(of_region)) for name, of_region in scores.items()}
    files = {"prediction": str(prediction.path), "reference": str(reference.path)}
    if task.uncertainty:
        paths, of_regions = _of_uncertainty(prediction, reference, *class_maps)
        files |= paths
        described |= {name: {**described[name], "uncertainty": asdict(of_region)} for name, of_region in of_regions.items()}
    return {
        "case": task.pair.case,
        "convention": task.convention,
        "labels": task.labels,
        "tolerance_mm": task.tolerance_mm,
        **files,
        "regions": {name: described[name] for name in REGIONS},
        "classes": {name: described[name] for name in (TumourClass.NCR.name, TumourClass.ED.name, TumourClass.ET.name)},
    }


def _of_uncertainty(
    prediction: Volume, reference: Volume, predicted: ClassMap, referred: ClassMap
) -> tuple[dict[str, Any], dict[str, UncertaintyScores]]:
    """The files that were read, and the scores of every region.

    The brain is where the T1 image beside the reference is above 0, as the script of BraTS 2020 suggests; without one the whole
    volume counts, and brain_image is None.
    """
    paths, t1_path = uncertainty_maps_of(prediction.path), t1_of(reference.path)
    volumes = _loaded(*paths.values(), *([t1_path] if t1_path is not None else []))
    brain = None
    if t1_path is not None:
        t1 = volumes.pop()
        _check_grid(t1, reference, names=("T1", "reference"))
        brain = _unravelled(t1.brain)
    class_maps = _unravelled(predicted), _unravelled(referred)
    scores = {}
    for (region, classes), volume in zip(REGIONS.items(), volumes, strict=True):
        _check_grid(volume, prediction, names=("uncertainty map", "label map"))
        masks = [mask_of(class_map, classes) for class_map in class_maps]
        scores[region] = uncertainty_scores(_unravelled(_uncertainty_of(volume)), *masks, brain=brain)
    maps = {region: str(path) for region, path in paths.items()}
    return {"uncertainty_maps": maps, "brain_image": None if t1_path is None else str(t1_path)}, scores


def _unravelled(voxels: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    """In the order in which volumes lie in memory: masks of it are made and counted several times as fast."""
    return np.ravel(voxels, order="F")


def _uncertainty_of(volume: Volume) -> UncertaintyMap:
    try:
        return percentages(volume.voxels)
    except CaseError as error:
        raise CaseError(f"{volume.path}: {error}") from error


def _loaded(*paths: Path) -> list[Volume]:
    with ThreadPoolExecutor(len(paths)) as threads:
        return list(threads.map(load_volume, paths))


def _check_grid(volume: Volume, other: Volume, *, names: tuple[str, str]) -> None:
    if (error := grids_differ(volume, other, names=names)) is not None:
        raise error


def _described(scores: dict[str, Any]) -> dict[str, Any]:
    """Volumes to a cubic millimetre, and without the counts of lesions where the convention has none."""
    # + 0.0: a volume that is 0.0001 mL too small would be -0.0.
    present = {name: value for name, value in scores.items() if value is not None}
    return {name: round(value, 3) + 0.0 if name.endswith("_ml") else value for name, value in present.items()}
