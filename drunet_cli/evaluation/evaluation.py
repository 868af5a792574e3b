"""One case: two label maps in, every score out."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from drunet_cli.brats import REGIONS, ReadLabels, TumourClass
from drunet_cli.evaluation.comparison import Convention, compare
from drunet_cli.evaluation.pairs import Pair
from drunet_cli.io.grids import grids_differ
from drunet_cli.io.labels import class_map_of
from drunet_cli.io.nifti import load_volume


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """One pair and what is asked of it. tolerance_mm: of the surface Dice."""

    pair: Pair
    convention: Convention
    labels: ReadLabels
    tolerance_mm: float


def evaluate(task: EvaluationTask) -> dict[str, Any]:
    """The JSON object of one case: its scores by region and class.

    Raises CaseError when a file cannot be read, holds no BraTS labels, or the two are on different grids.
    """
    paths = (task.pair.prediction, task.pair.reference)
    with ThreadPoolExecutor(len(paths)) as threads:
        prediction, reference = threads.map(load_volume, paths)
    if (error := grids_differ(prediction, reference, names=("prediction", "reference"))) is not None:
        raise error
    scores = compare(
        class_map_of(prediction, task.labels)[0],
        class_map_of(reference, task.labels)[0],
        spacing_mm=reference.spacing_mm,
        convention=task.convention,
        tolerance_mm=task.tolerance_mm,
    )
    described = {name: _described(asdict(of_region)) for name, of_region in scores.items()}
    return {
        "case": task.pair.case,
        "convention": task.convention,
        "labels": task.labels,
        "tolerance_mm": task.tolerance_mm,
        "prediction": str(prediction.path),
        "reference": str(reference.path),
        "regions": {name: described[name] for name in REGIONS},
        "classes": {name: described[name] for name in (TumourClass.NCR.name, TumourClass.ED.name, TumourClass.ET.name)},
    }


def _described(scores: dict[str, Any]) -> dict[str, Any]:
    """Volumes to a cubic millimetre, and without the counts of lesions where the convention has none."""
    present = {name: value for name, value in scores.items() if value is not None}
    return {name: round(value, 3) if name.endswith("_ml") else value for name, value in present.items()}
