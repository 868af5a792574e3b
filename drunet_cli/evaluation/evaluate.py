"""The scores of a case from its files or class maps; statistics, tables and box plots of many cases."""

import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import N_CLASSES, REGIONS, TUMOUR_CLASSES, ClassMap, Convention, ReadLabels, TumourClass, round_ml
from drunet_cli.errors import name_file, plural
from drunet_cli.evaluation.pairs import Pair, t1_of, uncertainty_maps_of
from drunet_cli.evaluation.scores import (
    LesionCounts,
    Mask,
    SpacingMm,
    border_hd95_mm,
    box_around,
    lesion_scores,
    mask_of,
    overlap,
    surface_distances,
)
from drunet_cli.evaluation.uncertainty import UncertaintyMap, UncertaintyScores, percentages, uncertainty_scores
from drunet_cli.host import check_installed
from drunet_cli.io.checks import CaseWarning, check_one_grid
from drunet_cli.io.nifti import Volume, load_volume
from drunet_cli.io.tables import encode_table, encode_workbook
from drunet_cli.io.volumes import class_map_of

MISSED_REGION_HD95_MM: Final = 373.12866  # BraTS: the diagonal of 240 x 240 x 155 voxels of 1 mm
REGIONS_AND_CLASSES: Final = REGIONS | {index.name: (index,) for index in TUMOUR_CLASSES}

# The scores that tables show, in their order, each with its label for people.
SCORES: Final[Mapping[str, str]] = {
    "dice": "Dice",
    "hd95_mm": "HD95 mm",
    "surface_dice": "surface Dice",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "volume_error_ml": "volume error mL",
}
# The scores of an uncertainty map, where they were asked for, by the names of the columns of flat tables.
UNCERTAINTY_SCORES: Final[Mapping[str, str]] = {
    "uncertainty_dice_auc": "Dice AUC",
    "uncertainty_ftp_auc": "FTP AUC",
    "uncertainty_ftn_auc": "FTN AUC",
    "uncertainty_score": "uncertainty",
    "uncertainty_error_auroc": "error AUROC",
}
_RESAMPLES: Final = 10_000
_INTERVAL_PERCENT: Final = (2.5, 97.5)

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class EvaluationTask:
    """One pair, and how to score it.

    tolerance_mm: the tolerance of surface Dice. uncertainty: whether to score the uncertainty maps beside the prediction too.
    """

    pair: Pair
    convention: Convention = Convention.BRATS
    labels: ReadLabels = ReadLabels.AUTO
    tolerance_mm: float = 1.0
    uncertainty: bool = False


@dataclass(frozen=True)
class RegionScores:
    """The scores of one region or class of one case.

    dice, hd95_mm: by convention. surface_dice: over the whole region, at the tolerance asked for; 1 where both are empty.
    sensitivity, specificity, precision: voxel-wise, see Overlap. Volumes in mL; the error is prediction less reference.
    lesions: None but in the lesion-wise convention.
    """

    dice: float
    hd95_mm: float
    surface_dice: float
    sensitivity: float
    specificity: float
    precision: float
    voxels: int
    reference_voxels: int
    volume_ml: float
    reference_volume_ml: float
    volume_error_ml: float
    lesions: LesionCounts | None


@dataclass(frozen=True)
class Statistics:
    """Statistics of one score over n cases. sd: of the sample (n - 1), 0 for one case.

    low, high: 95 % interval of the mean, percentiles of 10,000 bootstrap resamples of the cases.
    """

    n: int
    mean: float
    sd: float
    median: float
    lower_quartile: float
    upper_quartile: float
    low: float
    high: float


def evaluate(task: EvaluationTask) -> dict[str, Any]:
    """The JSON object of one case: its scores by region and class.

    Raises CaseError when a file is absent, cannot be read, is on another grid, or holds no BraTS labels or no uncertainties.
    """
    prediction, reference = _load(task.pair.prediction, task.pair.reference)
    warnings = check_one_grid(prediction, reference, names=("prediction", "reference"))
    class_maps = [class_map_of(volume, task.labels)[0] for volume in (prediction, reference)]
    found = compare(*class_maps, spacing_mm=reference.spacing_mm, convention=task.convention, tolerance_mm=task.tolerance_mm)
    scores = {name: _rounded(asdict(of_region)) for name, of_region in found.items()}
    files: dict[str, Any] = {"prediction": str(prediction.path), "reference": str(reference.path)}
    if task.uncertainty:
        maps, uncertainty, more = _score_uncertainty(prediction, reference, *class_maps)
        files |= maps
        warnings += more
        scores |= {name: {**scores[name], "uncertainty": asdict(of_region)} for name, of_region in uncertainty.items()}
    return {
        "case": task.pair.case,
        "convention": task.convention,
        "labels": task.labels,
        "tolerance_mm": task.tolerance_mm,
        **files,
        "regions": {name: scores[name] for name in REGIONS},
        "classes": {name: scores[name] for name in (TumourClass.NCR.name, TumourClass.ED.name, TumourClass.ET.name)},
        "warnings": [warning._asdict() for warning in warnings],
    }


def compare(
    prediction: ClassMap, reference: ClassMap, *, spacing_mm: SpacingMm, convention: Convention, tolerance_mm: float = 1.0
) -> dict[str, RegionScores]:
    """Score class maps [I, J, K], class indices 0-3, on one grid: WT, TC, ET, NCR, ED in this order. ET is region and class.

    tolerance_mm: the tolerance of surface Dice. ValueError for shapes that differ, other class indices, and a spacing or
    tolerance that is no length.
    """
    _check_arrays(prediction, reference, spacing_mm, tolerance_mm)
    box = box_around((prediction | reference) > 0)
    outside = prediction.size - prediction[box].size
    cropped = np.ascontiguousarray(prediction[box]), np.ascontiguousarray(reference[box])
    scores = {}
    for name, classes in REGIONS_AND_CLASSES.items():
        masks = [mask_of(class_map, classes) for class_map in cropped]
        scores[name] = _score(*masks, outside=outside, spacing_mm=spacing_mm, convention=convention, tolerance_mm=tolerance_mm)
    return scores


def statistics(values: Sequence[float], *, seed: int) -> Statistics:
    """Summarise a score of some cases. values: one a case, at least one. Equal values and seed give equal numbers."""
    of_cases = np.asarray(values, dtype=np.float64)
    resampled = np.random.default_rng(seed).choice(of_cases, size=(_RESAMPLES, of_cases.size))
    low, high = np.percentile(resampled.mean(axis=1), _INTERVAL_PERCENT)
    lower, median, upper = np.percentile(of_cases, (25, 50, 75))
    sd = of_cases.std(ddof=1) if of_cases.size > 1 else 0.0
    numbers = (of_cases.mean(), sd, median, lower, upper, low, high)
    return Statistics(of_cases.size, *(float(number) for number in numbers))


def summarise(documents: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, dict[str, Statistics]]:
    """Statistics by region and score. documents: the objects of `evaluate`, one a case.

    A score that some cases lack is summarised over the others; a score that all lack is absent.
    """
    by_case = [scores_of(document) for document in documents]
    summary: dict[str, dict[str, Statistics]] = {}
    for region in by_case[0]:
        values = {
            score: [scores[region][score] for scores in by_case if score in scores[region]]
            for score in (*SCORES, *UNCERTAINTY_SCORES)
        }
        summary[region] = {score: statistics(of_cases, seed=seed) for score, of_cases in values.items() if of_cases}
    return summary


def scores_of(document: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The scores that one case has, by region and score."""
    flat = {region: _flatten(scores) for region, scores in document["regions"].items()}
    return {
        region: {score: scores[score] for score in (*SCORES, *UNCERTAINTY_SCORES) if scores.get(score) is not None}
        for region, scores in flat.items()
    }


def worst_cases(documents: Iterable[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """The n cases of lowest mean Dice over WT, TC and ET, the worst first."""

    def mean_dice(document: Mapping[str, Any]) -> float:
        return float(np.mean([scores["dice"] for scores in document["regions"].values()]))

    return sorted(documents, key=lambda document: (mean_dice(document), document["case"]))[:n]


def encode_csv(documents: Sequence[Mapping[str, Any]]) -> bytes:
    """A row a case and region or class; the columns are the scores of the JSON objects, by name.

    The names of files need not be text: their bytes are kept.
    """
    rows = _rows_of(documents)
    return encode_table(list(rows[0]), rows)


def encode_xlsx(documents: Sequence[Mapping[str, Any]]) -> bytes:
    """The table of `encode_csv` as a workbook, whose numbers are numbers in every locale."""
    rows = _rows_of(documents)
    return encode_workbook(list(rows[0]), rows)


def _rows_of(documents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"case": document["case"], "convention": document["convention"], "region": name, **_flatten(scores)}
        for document in documents
        for name, scores in {**document["regions"], **document["classes"]}.items()
    ]


def encode_statistics(summary: Mapping[str, Mapping[str, Statistics]]) -> bytes:
    """A row a region and score. summary: by region and score, see `summarise`."""
    by_score = ((region, score, found) for region, scores in summary.items() for score, found in scores.items())
    rows = [{"region": region, "score": score, **asdict(found)} for region, score, found in by_score]
    return encode_table(["region", "score", *(item.name for item in fields(Statistics))], rows)


def _load(*paths: Path) -> list[Volume]:
    with ThreadPoolExecutor(len(paths)) as threads:
        return list(threads.map(load_volume, paths))


def _check_arrays(prediction: ClassMap, reference: ClassMap, spacing_mm: SpacingMm, tolerance_mm: float) -> None:
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise ValueError(f"class maps of shapes {prediction.shape} and {reference.shape}; both must be [I, J, K]")
    if max(class_map.max(initial=0) for class_map in (prediction, reference)) >= N_CLASSES:
        raise ValueError("class indices above 3; label values must be turned into class indices first")
    if not all(np.isfinite(size) and size > 0 for size in spacing_mm) or len(spacing_mm) != 3:
        raise ValueError(f"a spacing of {spacing_mm}; it must be three lengths in mm")
    if not tolerance_mm >= 0:
        raise ValueError(f"a tolerance of {tolerance_mm} mm")


def _score(
    prediction: Mask,
    reference: Mask,
    *,
    outside: int,
    spacing_mm: SpacingMm,
    convention: Convention,
    tolerance_mm: float,
) -> RegionScores:
    """Score two masks of one region. outside: voxels outside the box to which the masks were cropped, background in both."""
    counts = overlap(prediction, reference)
    counts = replace(counts, true_negatives=counts.true_negatives + outside)
    lesions = None
    if convention is Convention.LESIONWISE:
        by_lesion = lesion_scores(prediction, reference, spacing_mm=spacing_mm)
        dice, hd95_mm, lesions = by_lesion.dice, by_lesion.hd95_mm, by_lesion.counts
    else:
        dice, hd95_mm = counts.dice, border_hd95_mm(prediction, reference, spacing_mm=spacing_mm)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return RegionScores(
        dice=dice,
        hd95_mm=hd95_mm if np.isfinite(hd95_mm) else MISSED_REGION_HD95_MM,
        surface_dice=surface_distances(prediction, reference, spacing_mm=spacing_mm).dice(tolerance_mm),
        sensitivity=counts.sensitivity,
        specificity=counts.specificity,
        precision=counts.precision,
        voxels=counts.voxels,
        reference_voxels=counts.reference_voxels,
        volume_ml=counts.voxels * voxel_ml,
        reference_volume_ml=counts.reference_voxels * voxel_ml,
        volume_error_ml=(counts.voxels - counts.reference_voxels) * voxel_ml,
        lesions=lesions,
    )


def _score_uncertainty(
    prediction: Volume, reference: Volume, predicted: ClassMap, true: ClassMap
) -> tuple[dict[str, Any], dict[str, UncertaintyScores], list[CaseWarning]]:
    """The files that were read, the scores of every region, and warnings.

    The brain is where the T1 image beside the reference is above 0, as the script of BraTS 2020 suggests. Without a T1 image,
    the whole volume counts and brain_image is None.
    """
    paths, t1_path = uncertainty_maps_of(prediction.path), t1_of(reference.path)
    volumes = _load(*paths.values(), *([t1_path] if t1_path is not None else []))
    brain = None
    warnings = []
    if t1_path is not None:
        t1 = volumes.pop()
        warnings += check_one_grid(t1, reference, names=("T1", "reference"))
        brain = _in_memory_order(t1.brain)
    class_maps = _in_memory_order(predicted), _in_memory_order(true)
    scores = {}
    for (region, classes), volume in zip(REGIONS.items(), volumes, strict=True):
        warnings += check_one_grid(volume, prediction, names=("uncertainty map", "label map"))
        masks = [mask_of(class_map, classes) for class_map in class_maps]
        scores[region] = uncertainty_scores(_in_memory_order(_uncertainty_in(volume)), *masks, brain=brain)
    maps = {region: str(path) for region, path in paths.items()}
    return {"uncertainty_maps": maps, "brain_image": None if t1_path is None else str(t1_path)}, scores, warnings


def _in_memory_order(voxels: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
    """[I, J, K] as [N] in the order in which volumes lie in memory: masks are made and counted several times as fast."""
    return np.ravel(voxels, order="F")


def _uncertainty_in(volume: Volume) -> UncertaintyMap:
    with name_file(volume.path):
        return percentages(volume.voxels)


def _rounded(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores with volumes to a cubic millimetre, and without the counts of lesions where there are none."""
    present = {name: value for name, value in scores.items() if value is not None}
    return {name: round_ml(value) if name.endswith("_ml") else value for name, value in present.items()}


def _flatten(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores whose names begin with the name of the group that they were in, as uncertainty_score."""
    flat: dict[str, Any] = {}
    for name, value in scores.items():
        flat |= {f"{name}_{inner}": number for inner, number in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


# Colours of the regions that a colour-blind reader can tell apart (Okabe and Ito).
REGION_COLOURS: Final = {"WT": "#0072B2", "TC": "#E69F00", "ET": "#009E73"}
_PANELS: Final = {"dice": "Dice", "hd95_mm": "HD95 (mm)"}
_JITTER: Final = 0.12
_HD95_TICKS_MM: Final = (0, 1, 3, 10, 30, 100, 373)


def check_plottable() -> None:
    """Raise MisuseError where matplotlib is not installed, and ImportError for one that is broken."""
    check_installed(["matplotlib"], needed_by="--plot")
    import matplotlib  # noqa: F401  # before anything is compared


def box_plots(documents: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG picture: Dice and HD95 by region, every case a point. documents: the objects of `evaluate`, one a case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    regions = list(REGION_COLOURS)
    jitter = np.random.default_rng(0).uniform(-_JITTER, _JITTER, len(documents))
    for axes, (score, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        values = [[document["regions"][region][score] for document in documents] for region in regions]
        axes.boxplot(values, tick_labels=regions, showfliers=False, widths=0.5, medianprops={"color": "black"})
        for position, (region, of_region) in enumerate(zip(regions, values, strict=True), start=1):
            axes.scatter(position + jitter, of_region, s=26, color=REGION_COLOURS[region], alpha=0.7, linewidths=0, zorder=3)
        axes.set_ylabel(label)
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
        if score == "dice":
            axes.set_ylim(-0.03, 1.03)
        else:  # most distances are a few mm, that of a missed region is 373
            axes.set_yscale("symlog", linthresh=1)
            axes.set_yticks(_HD95_TICKS_MM, [str(tick) for tick in _HD95_TICKS_MM])
            axes.set_ylim(-0.2, 500)
    figure.suptitle(f"{plural(len(documents), 'case')}, convention {documents[0]['convention']}", fontsize="medium")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
