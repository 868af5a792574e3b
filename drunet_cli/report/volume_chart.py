"""How the volumes of many cases are distributed, as pictures that a page can hold."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import numpy as np

from drunet_cli.brats import REGION_NAMES, REGIONS
from drunet_cli.errors import one_line
from drunet_cli.report.runs import Record

# Of the picture, in its own units.
_WIDTH, _HEIGHT = 360, 150
_LEFT, _RIGHT, _TOP, _BASE = 8, 352, 18, 112
_CASES = (115, 123)
_TICKS: Final = 138
_MOST_BARS: Final = 20
_MOST_MARKED: Final = 1000  # more cases than this are told by the bars alone


def volume_charts(records: Sequence[Record]) -> str:
    """A histogram of each region over the same volumes, with a mark below it for every case. Empty where no volume is known."""
    volumes = {
        region: sorted(
            (record.row.volumes_ml[region], record.row.case) for record in records if region in record.row.volumes_ml
        )
        for region in REGIONS
    }
    values = {region: np.array([volume for volume, _ in cases]) for region, cases in volumes.items() if cases}
    if not values:
        return ""
    step, edges = _edges(max(float(of_region[-1]) for of_region in values.values()))
    counts = {region: np.histogram(np.minimum(of_region, edges[-1]), edges)[0].tolist() for region, of_region in values.items()}
    return "".join(
        f"<figure><figcaption>{_caption(region, values[region])}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Histogram of {REGION_NAMES[region]} volume">'
        f"{_bars(counts[region], step)}{_marks(volumes[region], edges[-1])}{_axis(edges)}</svg></figure>"
        for region in values
    )


def _caption(region: str, volumes: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> str:
    lower, median, upper = np.percentile(volumes, (25, 50, 75))
    n_empty = int(np.count_nonzero(volumes == 0))
    empty = f"; none in {n_empty}" if n_empty else ""
    return (
        f"<strong>{region}</strong> {REGION_NAMES[region]}: median {median:.1f} mL, quartiles {lower:.1f} to {upper:.1f} "
        f'<span class="dim">({volumes.size} with volumes{empty})</span>'
    )


def _edges(largest: float) -> tuple[float, list[float]]:
    """A round width of the bars, and where they begin and end."""
    at_least = max(largest, 0.1) / _MOST_BARS
    power = 10.0 ** math.floor(math.log10(at_least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least * (1 - 1e-9))
    n_bars = max(1, math.ceil(largest / step * (1 - 1e-9)))
    return step, [index * step for index in range(n_bars + 1)]


def _bars(counts: Sequence[int], step: float) -> str:
    most = max(counts)
    width = (_RIGHT - _LEFT) / len(counts)
    bars = []
    for index, count in enumerate(counts):
        if count:
            height = (_BASE - _TOP) * count / most
            told = f"{index * step:g} to {(index + 1) * step:g} mL: {count} of the cases"
            bars.append(
                f'<rect class="bar" x="{_LEFT + index * width:.1f}" y="{_BASE - height:.1f}" width="{width - 1:.1f}" '
                f'height="{height:.1f}"><title>{told}</title></rect>'
            )
    label = _LEFT + (counts.index(most) + 0.5) * width
    return f'{"".join(bars)}<text class="tick" x="{label:.1f}" y="{_TOP - 4}" text-anchor="middle">{most}</text>'


def _marks(cases: Sequence[tuple[float, str]], largest: float) -> str:
    if len(cases) > _MOST_MARKED:
        return ""
    top, bottom = _CASES
    marks = []
    for volume, case in cases:
        x = _LEFT + (_RIGHT - _LEFT) * volume / largest
        told = escape(f"{one_line(case)}: {volume:.1f} mL")
        marks.append(f'<path class="case" d="M{x:.1f} {top}V{bottom}"><title>{told}</title></path>')
    return "".join(marks)


def _axis(edges: Sequence[float]) -> str:
    ticks = {0: "start", (len(edges) - 1) // 2: "middle", len(edges) - 1: "end"}
    labels: Mapping[int, str] = ticks if len(edges) > 2 else {0: "start", len(edges) - 1: "end"}
    texts = "".join(
        f'<text class="tick" x="{_LEFT + (_RIGHT - _LEFT) * index / (len(edges) - 1):.1f}" y="{_TICKS}" '
        f'text-anchor="{anchor}">{edges[index]:g} mL</text>'
        for index, anchor in labels.items()
    )
    return f'<path class="axis" d="M{_LEFT} {_BASE}H{_RIGHT}"/>{texts}'
