"""Box plots over cases. The points are read from matplotlib, and the colours from the picture itself."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from PIL import Image

from drunet_cli.errors import MisuseError
from drunet_cli.evaluation.evaluate import box_plots, check_plottable

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

REGIONS: Final = ["WT", "TC", "ET"]
MISSED_MM: Final = 373.12866
# Okabe and Ito's blue, orange and green, which `plots` gives to WT, TC and ET.
COLOURS: Final = {"WT": (0x00, 0x72, 0xB2), "TC": (0xE6, 0x9F, 0x00), "ET": (0x00, 0x9E, 0x73)}


def documents(n_cases: int, *, missed: int = 0) -> list[dict[str, Any]]:
    """missed: cases in which no ET was found. The first case has a perfect WT."""
    random = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    for n in range(n_cases):
        regions = {region: {"dice": random.uniform(0.5, 1), "hd95_mm": random.uniform(1, 9)} for region in REGIONS}
        if n < missed:
            regions["ET"] = {"dice": 0.0, "hd95_mm": MISSED_MM}
        cases.append({"case": f"case_{n}", "convention": "brats", "regions": regions})
    cases[0]["regions"]["WT"] = {"dice": 1.0, "hd95_mm": 0.0}
    return cases


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved while a test runs."""
    seen: list[Any] = []
    save = Figure.savefig

    def remember(figure: Any, *arguments: Any, **options: Any) -> None:
        seen.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return seen


def values(drawn: Sequence[dict[str, Any]], score: str) -> list[list[float]]:
    return [sorted(document["regions"][region][score] for document in drawn) for region in REGIONS]


@pytest.mark.parametrize("n_cases", [1, 2, 40])
def test_every_case_is_a_point_of_its_region_in_its_panel_and_nothing_is_cut_off(n_cases: int, figures: list[Any]) -> None:
    drawn = documents(n_cases, missed=n_cases // 2)
    content = box_plots(drawn)
    for axes, (score, label) in zip(figures[0].axes, {"dice": "Dice", "hd95_mm": "HD95 (mm)"}.items(), strict=True):
        points = [collection.get_offsets() for collection in axes.collections]
        np.testing.assert_allclose([sorted(float(y) for _, y in of_region) for of_region in points], values(drawn, score))
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert all(left < x < right and bottom < y < top for x, y in np.concatenate(points))  # half a point would be cut off
        assert axes.get_ylabel() == label
        assert [tick.get_text() for tick in axes.get_xticklabels()] == REGIONS
    words = "1 case" if n_cases == 1 else f"{n_cases} cases"
    assert figures[0].get_suptitle() == f"{words}, convention brats"
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("PNG", (1200, 675))
        picture = np.asarray(image.convert("RGB")).astype(int)
    for colour in COLOURS.values():
        # 0.7 opaque on white, or nearer to the colour where points overlap; 5 pixels a case at the least.
        blended = [np.rint(255 + opacity * (np.array(colour) - 255)) for opacity in (0.7, 0.91)]
        seen = sum(np.count_nonzero(np.abs(picture - blend).max(axis=2) <= 3) for blend in blended)
        assert seen >= 2 * 5 * min(n_cases, 8)
    for border in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (border == 255).all()


def test_axes_are_the_same_for_any_cases_and_tell_small_distances_apart(figures: list[Any]) -> None:
    box_plots(documents(2))
    content = box_plots(documents(40, missed=40))
    assert box_plots(documents(40, missed=40)) == content
    for first, second in zip(*(figure.axes for figure in figures[:2]), strict=True):
        assert first.get_ylim() == second.get_ylim()
    axes = figures[1].axes[1]
    near, far = (axes.transData.transform((1, mm))[1] for mm in (1, 9))
    assert far - near > 0.1 * axes.get_window_extent().height


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MisuseError, match="--plot needs matplotlib, which is not installed; run: pip install matplotlib"):
        check_plottable()


def test_a_matplotlib_that_is_there_and_broken_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('libpng16.so.16: cannot open')")
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"libpng16\.so\.16"):
        check_plottable()
