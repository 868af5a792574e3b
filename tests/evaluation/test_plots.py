"""The picture of scores over cases: looked at as a figure, and as the pixels that are written."""

import io
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from drunet_cli.errors import MisuseError
from drunet_cli.evaluation.plots import box_plots, check_plottable

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

REGIONS: Final = ["WT", "TC", "ET"]
MISSED_MM: Final = 373.12866
# Okabe and Ito's blue, orange and green, which `plots` gives to WT, TC and ET.
COLOURS: Final = {"WT": (0x00, 0x72, 0xB2), "TC": (0xE6, 0x9F, 0x00), "ET": (0x00, 0x9E, 0x73)}

Pixels = npt.NDArray[np.uint8]


def documents(n_cases: int, *, missed: int = 0, convention: str = "brats") -> list[dict[str, Any]]:
    """Of `missed` cases no ET was found."""
    random = np.random.default_rng(0)

    def scores(*, absent: bool) -> dict[str, float]:
        return (
            {"dice": 0.0, "hd95_mm": MISSED_MM} if absent else {"dice": random.uniform(0.5, 1), "hd95_mm": random.uniform(1, 9)}
        )

    return [
        {
            "case": f"case_{n}",
            "convention": convention,
            "regions": {region: scores(absent=region == "ET" and n < missed) for region in REGIONS},
        }
        for n in range(n_cases)
    ]


def pixels(png: bytes) -> Pixels:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved meanwhile."""
    seen: list[Any] = []
    save = Figure.savefig

    def remember(figure: Any, *arguments: Any, **options: Any) -> None:
        seen.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return seen


def points(axes: Any) -> list[list[float]]:
    """By region, the values of the points."""
    return [sorted(float(y) for _, y in collection.get_offsets()) for collection in axes.collections]


def values(of: Sequence[dict[str, Any]], score: str) -> list[list[float]]:
    return [sorted(document["regions"][region][score] for document in of) for region in REGIONS]


@pytest.mark.parametrize("n_cases", [1, 2, 40])
def test_every_case_is_a_point_of_dice_and_hd95_of_every_region(n_cases: int, figures: list[Any]) -> None:
    drawn = documents(n_cases, missed=n_cases // 4)
    box_plots(drawn)
    dice, hd95 = figures[0].axes
    np.testing.assert_allclose(points(dice), values(drawn, "dice"))
    np.testing.assert_allclose(points(hd95), values(drawn, "hd95_mm"))


@pytest.mark.parametrize("n_cases", [1, 2, 40])
def test_every_point_lies_within_its_panel(n_cases: int, figures: list[Any]) -> None:
    drawn = documents(n_cases, missed=n_cases // 2)
    drawn[0]["regions"]["WT"] = {"dice": 1.0, "hd95_mm": 0.0}
    box_plots(drawn)
    for axes in figures[0].axes:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for x, y in np.concatenate([collection.get_offsets() for collection in axes.collections]):
            assert left < x < right
            assert bottom <= y <= top


def test_panels_are_labelled_with_score_unit_and_regions(figures: list[Any]) -> None:
    box_plots(documents(3))
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["Dice", "HD95 (mm)"]
    for axes in figures[0].axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == REGIONS


@pytest.mark.parametrize(("n_cases", "words"), [(1, "1 case, "), (40, "40 cases, ")])
@pytest.mark.parametrize("convention", ["brats", "lesionwise"])
def test_the_picture_states_the_convention_and_the_number_of_cases(
    n_cases: int, words: str, convention: str, figures: list[Any]
) -> None:
    box_plots(documents(n_cases, convention=convention))
    assert figures[0].get_suptitle() == f"{words}convention {convention}"


def test_the_dice_axis_is_the_same_for_any_cases(figures: list[Any]) -> None:
    box_plots(documents(2))
    box_plots(documents(40, missed=40))
    first, second = (figure.axes[0].get_ylim() for figure in figures)
    assert first == second
    assert first[0] < 0 < 1 < first[1]  # half a point of 0 or 1 would be cut off


@pytest.mark.parametrize("n_cases", [1, 2, 40])
def test_the_hd95_axis_begins_at_zero(n_cases: int, figures: list[Any]) -> None:
    drawn = documents(n_cases)
    box_plots(drawn)
    bottom, top = figures[0].axes[1].get_ylim()
    assert bottom <= 0 < top


@pytest.mark.parametrize("n_cases", [1, 2, 40])
def test_the_points_of_every_region_are_seen_in_its_colour(n_cases: int) -> None:
    picture = pixels(box_plots(documents(n_cases, missed=1))).astype(int)
    for colour in COLOURS.values():
        # 0.7 opaque on white, or nearer to the colour where points overlap; 5 pixels a case at the least.
        blended = [np.rint(255 + opacity * (np.array(colour) - 255)) for opacity in (0.7, 0.91)]
        seen = sum(np.count_nonzero(np.abs(picture - blend).max(axis=2) <= 3) for blend in blended)
        assert seen >= 2 * 5 * min(n_cases, 8)


@pytest.mark.parametrize("n_cases", [1, 2, 40])
def test_nothing_is_cut_off_at_the_border(n_cases: int) -> None:
    picture = pixels(box_plots(documents(n_cases, missed=n_cases)))
    assert picture.shape == (675, 1200, 3)
    for border in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (border == 255).all()


def test_equal_cases_make_equal_bytes() -> None:
    assert box_plots(documents(5)) == box_plots(documents(5))


def test_a_missed_region_leaves_the_other_distances_to_be_told_apart(figures: list[Any]) -> None:
    box_plots(documents(40, missed=4))
    axes = figures[0].axes[1]
    near, far = (axes.transData.transform((1, mm))[1] for mm in (1, 9))
    assert far - near > 0.1 * axes.get_window_extent().height


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MisuseError, match=r"--plot needs matplotlib: pip install 'drunet-cli\[plot\]'"):
        check_plottable()
