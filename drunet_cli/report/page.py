"""The report: one page of many cases that opens from a file, with pictures, and loads nothing from anywhere."""

import base64
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np

import drunet_cli
from drunet_cli.brats import REGION_NAMES, REGIONS
from drunet_cli.errors import CaseError, one_line
from drunet_cli.io.naming import stem
from drunet_cli.io.png import encode_webp
from drunet_cli.report.runs import Fact, Record, Runs, collapsed, provenance
from drunet_cli.segmentation.cohort import VOLUMES, Status

# Pixels. A preview of 1496 pixels takes about 460 kB; so wide as WebP 50 kB, 15 kB when narrow (on synthetic cases). A page of
# 200 cases thus has some 13 MB and can be sent by mail; with 1251, as BraTS 2021 has, 25 MB.
_WIDE: Final = 960
_NARROW: Final = 480
_MOST_WIDE: Final = 250
_LARGEST_BYTES: Final = 2**23


@dataclass(frozen=True)
class Thumbnail:
    """path: of the preview itself. webp: the picture, made smaller, of so many pixels."""

    path: Path
    webp: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Thumbnails:
    """by_label_map: of the cases that have one, by the row's output. notices: why others cannot be shown, one line each."""

    by_label_map: dict[str, Thumbnail]
    notices: tuple[str, ...] = ()


def read_thumbnails(records: Sequence[Record], *, n_threads: int, on_done: Callable[[], None] = lambda: None) -> Thumbnails:
    """Read every preview that there is. on_done: called once a record."""
    label_maps = [Path(record.row.output) for record in records if record.row.status is not Status.FAILED and _may_have(record)]
    previews = [label_map.with_name(f"{stem(label_map)}_preview.png") for label_map in label_maps]
    width = _WIDE if len(records) <= _MOST_WIDE else _NARROW
    by_label_map, unshown = {}, []
    threads = ThreadPoolExecutor(n_threads)
    try:
        read = threads.map(lambda path: _read(path, width), previews)
        for label_map, preview, found in zip(label_maps, previews, read, strict=True):
            on_done()
            if isinstance(found, Thumbnail):
                by_label_map[str(label_map)] = found
            elif found is not None:
                unshown.append((str(preview), f"{found}; not shown"))
    finally:
        threads.shutdown(cancel_futures=True)
    return Thumbnails(by_label_map, tuple(collapsed(unshown)))


def _may_have(record: Record) -> bool:
    """Whether its sidecar names a preview; a picture that it does not name may be of another label map."""
    files = (record.document or {}).get("files")
    return files is None or any(str(name).endswith("_preview.png") for name in files)


def _read(path: Path, width: int) -> Thumbnail | CaseError | None:
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            return CaseError("is larger than any preview")
        return Thumbnail(path, *encode_webp(content, width=width))
    except FileNotFoundError:
        return None
    except OSError as error:
        return CaseError(f"cannot be read: {error.strerror}")
    except CaseError as error:
        return error


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


_ASSETS: Final = files("drunet_cli.report") / "page_assets"
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{counts}</p>
<p class="dim">Research software, not a medical device.</p>
</header>
{notices}
{charts}
<h2 id="of-cases">Cases</h2>
<div class="filter">
<label>Find <input type="search" id="words"></label>
<label><input type="checkbox" id="remarkable"> only those that failed or have warnings</label>
<span class="dim" id="shown" role="status"></span>
</div>
<div class="wide">
<table id="cases" aria-labelledby="of-cases">
<thead><tr>{headers}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<dialog id="viewer" aria-label="Preview">
<img alt="">
<nav><strong></strong><a target="_blank" rel="noopener">the PNG file</a><button type="button" id="previous">Previous</button>
<button type="button" id="next" autofocus>Next</button><button type="button" id="close">Close</button></nav>
</dialog>
<footer>
<h2>Provenance</h2>
{facts}
<p class="dim">Page written by drunet {version}.</p>
</footer>
<script>{script}</script>
</body>
</html>
"""
_UNKNOWN: Final = '<td class="number dim">&ndash;</td>'


def encode_page(runs: Runs, thumbnails: Thumbnails, *, beside: Path) -> bytes:
    """The page as UTF-8; equal arguments give equal bytes. beside: the folder it will lie in, for links to the previews.

    First come the cases that failed, then those with warnings.
    """
    style, script = (_ASSETS.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    records = sorted(runs.records, key=lambda record: (record.row.status is not Status.FAILED, not record.needs_a_look))
    several = len({record.folder for record in records}) > 1
    rows = [_row(record, thumbnails.by_label_map.get(record.row.output), beside, several=several) for record in records]
    charts = volume_charts(records)
    page = _PAGE.format(
        policy=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        title=f"drunet: {_cases(len(records))}",
        counts=_counts(records),
        notices=_notices([*runs.notices, *thumbnails.notices]),
        charts=f'<h2>Volumes</h2>\n<div class="charts">{charts}</div>' if charts else "",
        headers=_headers(),
        rows="\n".join(rows),
        facts=_facts(provenance(records), len(records) - _n_failed(records)),
        version=drunet_cli.__version__,
        style=style,
        script=script,
    )
    return page.encode()


def _digest(source: str) -> str:
    """How a policy names the one script, or style, that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _text(text: str) -> str:
    return escape(one_line(text))


def _cases(n: int) -> str:
    return f"{n} case" if n == 1 else f"{n} cases"


def _n_failed(records: Iterable[Record]) -> int:
    return sum(record.row.status is Status.FAILED for record in records)


def _counts(records: Sequence[Record]) -> str:
    n_failed, n_warned = _n_failed(records), sum(bool(record.row.warnings) for record in records)
    return f"{_cases(len(records))}: {len(records) - n_failed} segmented, {n_failed} failed; {n_warned} with warnings."


def _notices(notices: Sequence[str]) -> str:
    lines = "".join(f"<li>{_text(notice)}</li>" for notice in notices)
    return f'<ul class="notices">{lines}</ul>' if notices else ""


def _headers() -> str:
    numbers = "".join(_header(f"{name} mL", "descending", "number") for name in VOLUMES)
    return (
        f'{_header("Case", "ascending")}<th scope="col">Preview</th>{numbers}{_header("Warnings", "descending")}'
        f"{_header('Seconds', 'descending', 'number')}"
    )


def _header(label: str, first: str, kind: str = "") -> str:
    """first: the order that the first click sorts in."""
    button = f'<button type="button">{label}</button>'
    return f'<th scope="col" class="{kind}" aria-sort="none" data-first="{first}">{button}</th>'


def _row(record: Record, thumbnail: Thumbnail | None, beside: Path, *, several: bool) -> str:
    """several: the records come from several folders, which are to be told apart."""
    row = record.row
    folder = f'<small class="dim">{_text(str(record.folder))}</small>' if several else ""
    cells = [
        f'<th scope="row" data-value="{_text(row.case)}">{_text(row.case)}{folder}</th>',
        f"<td>{_picture(thumbnail, row.case, beside) if thumbnail else ''}</td>",
        *(_volume(row.volumes_ml.get(name)) for name in VOLUMES),
        _remarks(record),
        _seconds(row.seconds),
    ]
    return f"<tr{' data-remarkable' if record.needs_a_look else ''}>{''.join(cells)}</tr>"


def _picture(thumbnail: Thumbnail, case: str, beside: Path) -> str:
    """One picture is both the small one and the one that opens; the link is for a browser without scripts."""
    link = quote(os.fsencode(os.path.relpath(thumbnail.path, beside)))
    source = base64.b64encode(thumbnail.webp).decode()
    return (
        f'<a class="thumbnail" href="{link}" data-case="{_text(case)}">'
        f'<img src="data:image/webp;base64,{source}" alt="Preview of {_text(case)}" width="{thumbnail.width}" '
        f'height="{thumbnail.height}" loading="lazy" decoding="async"></a>'
    )


def _volume(volume_ml: float | None) -> str:
    if volume_ml is None:
        return _UNKNOWN
    shown = "&lt;0.1" if 0 < volume_ml < 0.1 else f"{volume_ml:.1f}"
    return f'<td class="number" data-value="{volume_ml}">{shown}</td>'


def _seconds(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return _UNKNOWN
    stages = ", ".join(f"{stage} {duration:.1f} s" for stage, duration in seconds.items())
    total = sum(seconds.values())
    return f'<td class="number" data-value="{total:.3f}" title="{stages}">{total:.1f}</td>'


def _remarks(record: Record) -> str:
    """Why it failed, or its warnings; sorted by their number, and what failed above all."""
    row = record.row
    if row.status is Status.FAILED:
        return f'<td class="remarks" data-value="1000"><span class="failed">failed</span>: {_text(row.error)}</td>'
    if not row.warnings:
        return '<td class="remarks" data-value="0"></td>'
    messages = zip_longest(row.warnings, record.messages, fillvalue="")
    told = "".join(f"<p><strong>{_text(code)}</strong> {_text(message)}</p>" for code, message in messages)
    summary = f"<summary>{_text(', '.join(row.warnings))}</summary>"
    return f'<td class="remarks" data-value="{len(row.warnings)}"><details>{summary}{told}</details></td>'


def _facts(facts: Sequence[Fact], n_cases: int) -> str:
    """n_cases: those that were segmented; a fact that holds of all of them needs no number."""
    rows = []
    for fact in facts:
        numbers = ("" if n == n_cases else f' <span class="dim">({_cases(n)})</span>' for _, n in fact.variants)
        variants = (f"<div>{_text(text)}{number}</div>" for (text, _), number in zip(fact.variants, numbers, strict=True))
        rows.append(f'<tr><th scope="row">{_text(fact.name)}</th><td>{"".join(variants)}</td></tr>')
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>' if rows else "<p>No case was segmented.</p>"
