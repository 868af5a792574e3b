"""The report: one page of many cases that opens from a file, with pictures, and loads nothing from anywhere.

Its numbers come from the sidecars alone (and, for cases without one, from the summaries). Whatever stands in a file is escaped,
and the page forbids its browser every script but its own and every request.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Final
from urllib.parse import quote

import drunet_cli
from drunet_cli.errors import one_line
from drunet_cli.report.provenance import Fact, provenance
from drunet_cli.report.runs import Record, Runs
from drunet_cli.report.thumbnails import Thumbnail, Thumbnails
from drunet_cli.report.volume_chart import volume_charts
from drunet_cli.segmentation.summary import VOLUMES, Status

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
