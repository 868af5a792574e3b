"""Statistics over cases, against numbers worked out by hand, NumPy and SciPy; and the table of every score."""

import csv
import io
import math
import statistics as of_python
from typing import Any, Final

import numpy as np
import pytest
from scipy import stats

from drunet_cli.evaluation.evaluate import (
    SCORES,
    UNCERTAINTY_SCORES,
    Statistics,
    as_csv,
    mean_dice,
    statistics,
    summarised,
    worst,
)

DICE: Final = (0.9, 0.5, 0.7, 1.0)


def document(case: str, dice: float = 0.5, *, convention: str = "brats", **of_regions: float) -> dict[str, Any]:
    """A case as `evaluate` gives it; dice: of every region and class that of_regions does not name."""

    def scores(name: str) -> dict[str, Any]:
        found: dict[str, Any] = dict.fromkeys(SCORES, 0.25) | {"dice": of_regions.get(name, dice), "voxels": 3}
        counts = {"true_positives": 1, "false_negatives": 0, "false_positives": 2}
        return found | ({"lesions": counts} if convention == "lesionwise" else {})

    return {
        "case": case,
        "convention": convention,
        "regions": {name: scores(name) for name in ("WT", "TC", "ET")},
        "classes": {name: scores(name) for name in ("NCR", "ED", "ET")},
    }


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# --- statistics


def test_statistics_of_four_cases_worked_out_by_hand() -> None:
    found = statistics(DICE, seed=0)
    assert found.n == 4
    assert found.mean == pytest.approx(3.1 / 4)
    # Squares of the distances from 0.775: 0.015625, 0.075625, 0.005625, 0.050625.
    assert found.sd == pytest.approx(math.sqrt(0.1475 / 3))
    assert found.median == pytest.approx(0.8)
    # Of 0.5, 0.7, 0.9, 1.0 at the ranks 0.75 and 2.25, counted from 0.
    assert [found.lower_quartile, found.upper_quartile] == pytest.approx([0.65, 0.925])


@pytest.mark.parametrize("n", [2, 3, 10, 251])
def test_statistics_are_those_of_numpy_and_of_python(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n).tolist()
    found = statistics(values, seed=0)
    assert found.mean == pytest.approx(of_python.fmean(values))
    assert found.sd == pytest.approx(of_python.stdev(values))
    assert found.median == pytest.approx(of_python.median(values))
    lower, _, upper = of_python.quantiles(values, n=4, method="inclusive")
    assert [found.lower_quartile, found.upper_quartile] == pytest.approx([lower, upper])


def test_one_case_has_no_spread() -> None:
    assert statistics([0.8], seed=0) == Statistics(1, 0.8, 0.0, 0.8, 0.8, 0.8, 0.8, 0.8)


def test_equal_cases_have_an_interval_of_no_width() -> None:
    found = statistics([0.5] * 7, seed=0)
    assert (found.sd, found.low, found.high) == (0, 0.5, 0.5)


def test_the_interval_of_two_cases_is_that_of_its_four_resamples() -> None:
    # The means 0, 0.5 and 1 come with 1/4, 1/2 and 1/4: both percentiles are at the ends.
    found = statistics([0.0, 1.0], seed=0)
    assert (found.low, found.high) == (0, 1)


def test_the_interval_is_the_percentile_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(5).beta(8, 2, 60)
    found = statistics(values.tolist(), seed=0)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=10_000,
        confidence_level=0.95,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    # Two runs of 10,000 resamples: a 2.5th percentile has an error of 0.027 SD of the mean each; 5 of both together.
    tolerance = 5 * math.sqrt(2) * 0.027 * values.std() / math.sqrt(len(values))
    assert found.low == pytest.approx(expected.low, abs=tolerance)
    assert found.high == pytest.approx(expected.high, abs=tolerance)


def test_the_interval_of_many_cases_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(3).normal(size=2000)
    found = statistics(values.tolist(), seed=0)
    half = 1.96 * values.std() / math.sqrt(2000)
    # 5 errors of a 2.5th percentile from 10,000 resamples, of 0.027 SD of the mean each; its SD is half / 1.96.
    tolerance = 5 * 0.027 * half / 1.96
    assert found.low == pytest.approx(values.mean() - half, abs=tolerance)
    assert found.high == pytest.approx(values.mean() + half, abs=tolerance)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    values = np.random.default_rng(0).random(30).tolist()
    assert statistics(values, seed=4) == statistics(values, seed=4)
    one, other = statistics(values, seed=4), statistics(values, seed=5)
    assert (one.low, one.high) != (other.low, other.high)
    assert (one.mean, one.sd, one.median) == (other.mean, other.sd, other.median)


def test_the_interval_does_not_depend_on_numpy_s_global_seed() -> None:
    np.random.seed(1)  # noqa: NPY002  # the global one is meant
    first = statistics(DICE, seed=0)
    np.random.seed(2)  # noqa: NPY002
    assert statistics(DICE, seed=0) == first


def test_a_missed_region_counts_with_its_constant() -> None:
    assert statistics([373.12866, 0.0], seed=0).mean == pytest.approx(373.12866 / 2)


def test_every_region_and_score_is_summarised() -> None:
    found = summarised([document("a", 0.4, ET=0.0), document("b", 0.6, ET=0.5)], seed=0)
    assert list(found) == ["WT", "TC", "ET"]
    assert all(list(scores) == list(SCORES) for scores in found.values())
    assert found["WT"]["dice"] == statistics([0.4, 0.6], seed=0)
    assert found["ET"]["dice"] == statistics([0.0, 0.5], seed=0)
    assert found["TC"]["hd95_mm"].mean == 0.25


def with_uncertainty(case: str, error_auroc: float | None) -> dict[str, Any]:
    found = document(case)
    for scores in found["regions"].values():
        scores["uncertainty"] = {"dice_auc": 0.9, "error_auroc": error_auroc}
    return found


def test_scores_of_uncertainty_follow_the_others_where_cases_have_them() -> None:
    found = summarised([with_uncertainty("a", 0.8)], seed=0)
    assert list(found["WT"]) == [*SCORES, "uncertainty_dice_auc", "uncertainty_error_auroc"]
    assert set(found["WT"]) - set(SCORES) <= set(UNCERTAINTY_SCORES)


def test_a_score_is_of_the_cases_that_have_it_and_absent_where_none_has() -> None:
    found = summarised([with_uncertainty("a", 0.8), with_uncertainty("b", None), with_uncertainty("c", 0.6)], seed=0)["WT"]
    assert found["uncertainty_error_auroc"] == statistics([0.8, 0.6], seed=0)
    assert found["uncertainty_dice_auc"].n == 3
    assert "uncertainty_error_auroc" not in summarised([with_uncertainty("b", None)], seed=0)["WT"]


# --- the worst cases


def test_the_worst_cases_come_first() -> None:
    documents = [document(case, dice) for case, dice in zip("abcd", DICE, strict=True)]
    assert [found["case"] for found in worst(documents, 2)] == ["b", "c"]


def test_cases_are_ranked_by_the_mean_of_the_regions_not_of_the_classes() -> None:
    low_class = document("a", 0.9, NCR=0.0, ED=0.0)
    low_region = document("b", 0.9, TC=0.6)
    assert mean_dice(low_region) == pytest.approx((0.9 + 0.6 + 0.9) / 3)
    assert [found["case"] for found in worst([low_class, low_region], 1)] == ["b"]


def test_ties_are_in_the_order_of_their_names() -> None:
    assert [found["case"] for found in worst([document("b"), document("c"), document("a")], 3)] == ["a", "b", "c"]


def test_more_than_there_are_is_all() -> None:
    assert len(worst([document("a"), document("b")], 9)) == 2


# --- CSV


def test_a_table_has_one_row_a_case_and_region_or_class() -> None:
    found = rows(as_csv([document("a"), document("b")]))
    regions = ["WT", "TC", "ET", "NCR", "ED"]  # ET is both, and the same
    assert [(row["case"], row["region"]) for row in found] == [(case, region) for case in "ab" for region in regions]


@pytest.mark.parametrize("convention", ["brats", "lesionwise"])
def test_every_row_states_the_convention(convention: str) -> None:
    assert {row["convention"] for row in rows(as_csv([document("a", convention=convention)]))} == {convention}


def test_columns_are_the_scores_of_the_json_objects() -> None:
    header = as_csv([document("a")]).splitlines()[0].split(",")
    assert header == ["case", "convention", "region", *SCORES, "voxels"]


def test_counts_of_lesions_have_columns_of_their_own() -> None:
    [first, *_] = rows(as_csv([document("a", convention="lesionwise")]))
    counts = ("lesions_true_positives", "lesions_false_negatives", "lesions_false_positives")
    assert [first[name] for name in counts] == ["1", "0", "2"]
    assert "lesions" not in first


def test_scores_of_uncertainty_have_columns_and_a_cell_is_empty_where_there_is_none() -> None:
    first, *_, last = rows(as_csv([with_uncertainty("a", None)]))
    assert (first["uncertainty_dice_auc"], first["uncertainty_error_auroc"]) == ("0.9", "")
    assert (last["region"], last["uncertainty_dice_auc"]) == ("ED", "")


def test_numbers_come_back_from_the_table_bit_for_bit() -> None:
    value = 1 / 3 + 1e-16
    assert float(rows(as_csv([document("a", value)]))[0]["dice"]) == value


@pytest.mark.parametrize("case", ['a,"b"', "a\nb", "Jörg", " a "])
def test_any_name_comes_back_from_the_table(case: str) -> None:
    assert {row["case"] for row in csv.DictReader(io.StringIO(as_csv([document(case)]), newline=""))} == {case}


def test_lines_end_as_on_unix() -> None:
    text = as_csv([document("a")])
    assert "\r" not in text
    assert text.endswith("\n")
