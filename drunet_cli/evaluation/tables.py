"""What many cases amount to: statistics over cases, and the table of every score."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

# Of the scores of a region or class, in the order of tables; with the unit for people.
SCORES: Final[Mapping[str, str]] = {
    "dice": "Dice",
    "hd95_mm": "HD95 mm",
    "surface_dice": "surface Dice",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "volume_error_ml": "volume error mL",
}
# And of the uncertainty of a region, where it was asked for; by their names in flat tables.
UNCERTAINTY_SCORES: Final[Mapping[str, str]] = {
    "uncertainty_dice_auc": "Dice AUC",
    "uncertainty_ftp_auc": "FTP AUC",
    "uncertainty_ftn_auc": "FTN AUC",
    "uncertainty_score": "uncertainty",
    "uncertainty_error_auroc": "error AUROC",
}
_RESAMPLES: Final = 10_000
_INTERVAL_PERCENT: Final = (2.5, 97.5)


@dataclass(frozen=True)
class Statistics:
    """Of one score over cases. sd: of the sample (n - 1), 0 for one case.

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


def statistics(values: Sequence[float], *, seed: int) -> Statistics:
    """values: one a case, at least one. Equal values and seed give equal numbers."""
    of_cases = np.asarray(values, dtype=np.float64)
    resampled = np.random.default_rng(seed).choice(of_cases, size=(_RESAMPLES, of_cases.size))
    low, high = np.percentile(resampled.mean(axis=1), _INTERVAL_PERCENT)
    lower, median, upper = np.percentile(of_cases, (25, 50, 75))
    sd = of_cases.std(ddof=1) if of_cases.size > 1 else 0.0
    numbers = (of_cases.mean(), sd, median, lower, upper, low, high)
    return Statistics(of_cases.size, *(float(number) for number in numbers))


def summarised(documents: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, dict[str, Statistics]]:
    """Statistics by region and score, over the objects that `evaluation.evaluate` gives, one a case.

    A score that some cases do not have is of the others, and absent where none has it.
    """
    summary: dict[str, dict[str, Statistics]] = {}
    for region in documents[0]["regions"]:
        flat = [_flat(document["regions"][region]) for document in documents]
        summary[region] = {}
        for score in (*SCORES, *UNCERTAINTY_SCORES):
            if values := [scores[score] for scores in flat if scores.get(score) is not None]:
                summary[region][score] = statistics(values, seed=seed)
    return summary


def scores_of(document: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The same scores of one case, by region and score, those that it has."""
    flat = {region: _flat(scores) for region, scores in document["regions"].items()}
    return {
        region: {score: scores[score] for score in (*SCORES, *UNCERTAINTY_SCORES) if scores.get(score) is not None}
        for region, scores in flat.items()
    }


def worst(documents: Iterable[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """The n cases of lowest mean Dice over the regions, the worst first."""
    return sorted(documents, key=lambda document: (mean_dice(document), document["case"]))[:n]


def mean_dice(document: Mapping[str, Any]) -> float:
    """Over WT, TC and ET of one case."""
    return float(np.mean([scores["dice"] for scores in document["regions"].values()]))


def as_csv(documents: Iterable[Mapping[str, Any]]) -> str:
    """One row a case and region or class; the columns are the scores of the JSON objects, by name."""
    rows = [
        {"case": document["case"], "convention": document["convention"], "region": name, **_flat(scores)}
        for document in documents
        for name, scores in {**document["regions"], **document["classes"]}.items()
    ]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def _flat(scores: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in scores.items():
        flat |= {f"{name}_{inner}": number for inner, number in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat
