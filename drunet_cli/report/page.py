"""The report: one page of many cases that opens from a file, with pictures, and loads nothing from anywhere.

The page is `page.html.j2` with `page.css` and `page.js` in it; this module gives the template its numbers and pictures. With
`--viewer` a page of the viewer for each case lies beside, made of the files that the runs have read and written.
"""

import base64
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np

from drunet_cli.brats import CHANNELS, REGION_NAMES, REGIONS, Labels, Modality
from drunet_cli.errors import CaseError
from drunet_cli.evaluation.pairs import label_maps_in
from drunet_cli.io.atomic import publish
from drunet_cli.io.case import Case
from drunet_cli.io.checks import check_one_grid
from drunet_cli.io.inputs import InputFile, changed_files
from drunet_cli.io.naming import beside, stem
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.png import encode_webp
from drunet_cli.io.volumes import CaseImages, class_map_of, read_images
from drunet_cli.prepare.record import picture_beside
from drunet_cli.report.runs import Record, Runs, merge_messages, provenance
from drunet_cli.segmentation.outputs import PREPARED_ENDING, PREVIEW_ENDING, VIEW_ENDING
from drunet_cli.segmentation.summary import VOLUMES, Status, side_in_words
from drunet_cli.segmentation.viewer import Labelled, encode_viewer, render_page
from drunet_cli.weights.registry import caveat_of

# Pixels. A preview 1496 pixels wide takes about 460 kB; as WebP 50 kB when wide and 15 kB when narrow (synthetic cases). A page
# of 200 cases thus has some 13 MB and can be sent by mail; one of 1251, as BraTS 2021 has, 25 MB.
_WIDE: Final = 960
_NARROW: Final = 480
_MOST_WIDE: Final = 250
_LARGEST_BYTES: Final = 2**23

_MOST_BARS: Final = 20
_MOST_MARKED: Final = 1000  # the bars alone show more cases than this
_MOST_THREADS: Final = 4  # a case takes some 300 MB meanwhile


@dataclass(frozen=True)
class Thumbnail:
    """A picture of a case made smaller.

    shows: "Preview", of the labels, or "Preparation", of the raw scans. path: the picture itself. webp: the small picture,
    width by height pixels.
    """

    shows: str
    path: Path
    webp: bytes
    width: int
    height: int

    @property
    def data_url(self) -> str:
        """The small picture as an address that an image element takes."""
        return f"data:image/webp;base64,{base64.b64encode(self.webp).decode()}"


@dataclass(frozen=True)
class Thumbnails:
    """The pictures of a page, by the output of a case's row. notices: why others cannot be shown, a line each."""

    by_label_map: dict[str, list[Thumbnail]]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseFiles:
    """A file of each case. by_label_map: by the output of its row. notices: why other cases have none, a line each."""

    by_label_map: Mapping[str, Path]
    notices: tuple[str, ...] = ()


NO_FILES: Final = CaseFiles({})


@dataclass(frozen=True)
class Histogram:
    """The volumes of one region in all cases.

    volumes: millilitres and name of every case, ascending. edges_ml: where bars begin and end, equal in the histograms of one
    page; one more than counts, the cases in each bar. marks: the volumes, or none where they are too many to tell apart.
    """

    region: str
    name: str
    volumes: tuple[tuple[float, str], ...]
    edges_ml: tuple[float, ...]
    counts: tuple[int, ...]
    lower_ml: float
    median_ml: float
    upper_ml: float

    @property
    def n_empty(self) -> int:
        """Cases without this region."""
        return sum(volume_ml == 0 for volume_ml, _ in self.volumes)

    @property
    def marks(self) -> tuple[tuple[float, str], ...]:
        """The labels below the bars."""
        return self.volumes if len(self.volumes) <= _MOST_MARKED else ()


def encode_page(runs: Runs, thumbnails: Thumbnails, *, beside: Path, viewers: CaseFiles = NO_FILES) -> bytes:
    """The page as UTF-8; equal arguments give equal bytes. beside: the folder the page will lie in, for links to previews
    and to the pages of the viewer.

    Cases that failed come first, then those with warnings.
    """
    records = sorted(runs.records, key=lambda record: (not record.row.has_failed, not record.needs_a_look))
    n_failed = sum(record.row.has_failed for record in records)
    return render_page(
        "drunet_cli.report",
        "page",
        records=records,
        n_segmented=len(records) - n_failed,
        n_failed=n_failed,
        n_with_label_map=len(_with_label_map(records)),
        n_warned=sum(bool(record.row.warnings) for record in records),
        several_folders=len({record.folder for record in records}) > 1,
        caveats=Counter(filter(None, (caveat_of(record.row.weights_sha256) for record in records))),
        notices=[*runs.notices, *thumbnails.notices, *viewers.notices],
        histograms=histograms(records),
        volumes=VOLUMES,
        thumbnails=thumbnails.by_label_map,
        viewers=viewers.by_label_map,
        link_to=lambda path: quote(os.fsencode(os.path.relpath(path, beside))),
        facts=provenance(records),
    )


def histograms(records: Sequence[Record]) -> list[Histogram]:
    """A histogram of each region of which any volume is known, all with the same bars."""
    rows = [record.row for record in records]
    volumes = {
        region: sorted((row.volumes_ml[region], row.case) for row in rows if region in row.volumes_ml) for region in REGIONS
    }
    volumes = {region: cases for region, cases in volumes.items() if cases}
    if not volumes:
        return []
    edges_ml = _edges_ml(max(cases[-1][0] for cases in volumes.values()))
    found = []
    for region, cases in volumes.items():
        of_cases = np.array([volume_ml for volume_ml, _ in cases])
        counts, _ = np.histogram(np.minimum(of_cases, edges_ml[-1]), edges_ml)
        lower, median, upper = np.percentile(of_cases, (25, 50, 75)).tolist()
        name = REGION_NAMES[region]
        found.append(Histogram(region, name, tuple(cases), edges_ml, tuple(counts.tolist()), lower, median, upper))
    return found


def _edges_ml(largest_ml: float) -> tuple[float, ...]:
    """Edges of at most 20 bars of a round width, 1, 2 or 5 times a power of ten."""
    at_least = max(largest_ml, 0.1) / _MOST_BARS
    power = 10.0 ** math.floor(math.log10(at_least))
    width = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least * (1 - 1e-9))
    n_bars = max(1, math.ceil(largest_ml / width * (1 - 1e-9)))
    return tuple(index * width for index in range(n_bars + 1))


def read_thumbnails(records: Sequence[Record], *, n_threads: int, on_progress: Callable[[], None] = lambda: None) -> Thumbnails:
    """Read every picture that is there and make it smaller. on_progress: called once for each case that may have any."""
    segmented = _with_label_map(records)
    width = _WIDE if len(records) <= _MOST_WIDE else _NARROW
    by_label_map = {}
    unshown = []

    def thumbnails_of(record: Record) -> list[tuple[Path, Thumbnail | CaseError | None]]:
        return [(path, _thumbnail(shows, path, width)) for shows, path in _pictures_of(record)]

    threads = ThreadPoolExecutor(n_threads)
    try:
        for record, read in zip(segmented, threads.map(thumbnails_of, segmented), strict=True):
            on_progress()
            by_label_map[record.row.output] = [found for _, found in read if isinstance(found, Thumbnail)]
            unshown += [(str(path), f"{found}; not shown") for path, found in read if isinstance(found, CaseError)]
    finally:
        threads.shutdown(cancel_futures=True)
    return Thumbnails(by_label_map, tuple(merge_messages(unshown)))


def _pictures_of(record: Record) -> Iterator[tuple[str, Path]]:
    """The pictures of a case: the words that describe them, and their paths, if they are there.

    A picture beside the label map that its sidecar does not name may be of another label map. That of the preparation lies
    there, or in the folder of the prepared case.
    """
    label_map, document = Path(record.row.output), record.document or {}
    if document.get("files") is None or _names_file(record, PREVIEW_ENDING):
        yield "Preview", beside(label_map, PREVIEW_ENDING)
    if _names_file(record, PREPARED_ENDING):
        yield "Preparation", beside(label_map, PREPARED_ENDING)
    elif isinstance(origin := document.get("prepared_from"), Mapping) and isinstance(origin.get("record"), str):
        yield "Preparation", picture_beside(Path(origin["record"]))


def _names_file(record: Record, ending: str) -> bool:
    """Whether the sidecar of a case names a file with this ending beside the label map."""
    return any(str(name).endswith(ending) for name in (record.document or {}).get("files") or ())


def _thumbnail(shows: str, path: Path, width: int) -> Thumbnail | CaseError | None:
    """A picture made smaller, or why it cannot be; None where there is none."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            return CaseError("is larger than any preview")
        return Thumbnail(shows, path, *encode_webp(content, width=width))
    except FileNotFoundError:
        return None
    except OSError as error:
        return CaseError(f"cannot be read: {error.strerror}")
    except CaseError as error:
        return error


def pages_beside_label_maps(records: Sequence[Record]) -> CaseFiles:
    """The pages that `segment --viewer` has written, as far as sidecars name them and they are there."""
    found = {}
    for record in _with_label_map(records):
        page = beside(Path(record.row.output), VIEW_ENDING)
        if _names_file(record, VIEW_ENDING) and page.is_file():
            found[record.row.output] = page
    return CaseFiles(found)


def plan_pages(records: Sequence[Record], folder: Path) -> dict[str, Path]:
    """The path of the page of each case with a label map, by the output of its row.

    Pages are called as their label maps; a second one of that name has a number at its end.
    """
    seen: Counter[str] = Counter()
    pages = {}
    for record in _with_label_map(records):
        if record.row.output in pages:
            continue
        name = stem(Path(record.row.output))
        seen[name] += 1
        pages[record.row.output] = folder / f"{name}{'' if seen[name] == 1 else f'_{seen[name]}'}.html"
    return pages


def references_of(records: Sequence[Record], path: Path) -> CaseFiles:
    """The reference label map of each case, by the output of its row; notices tell of the cases without one.

    path: a folder of label maps, which are found by the names of their cases as `drunet evaluate` finds them; or, for one case,
    a label map. Raises CaseError for a path that is not there, a folder without label maps, and a file for several cases.
    """
    segmented = [record.row for record in _with_label_map(records)]
    if not os.path.isdir(path):
        if not os.path.lexists(path):
            raise CaseError(f"{path}: no such file or folder of references")
        if len(segmented) != 1:
            raise CaseError(f"{path}: is one reference, for {len(segmented)} label maps; name a folder of references")
        return CaseFiles({segmented[0].output: path})
    by_case = label_maps_in(path)
    found, missing = {}, []
    for row in segmented:
        candidates = by_case.get(row.case, [])
        if len(candidates) == 1:
            found[row.output] = candidates[0]
        else:
            reason = f"has {len(candidates)} references" if candidates else "has no reference"
            missing.append((row.case, f"{reason} in {path}; shown without"))
    return CaseFiles(found, tuple(merge_messages(missing)))


def write_pages(
    records: Sequence[Record],
    pages: Mapping[str, Path],
    references: Mapping[str, Path],
    *,
    overwrite: bool,
    n_threads: int,
    on_progress: Callable[[], None] = lambda: None,
) -> CaseFiles:
    """Read every case of the plan and write its page; a case whose files are not there or have changed gets none, and a notice.

    references: by the output of a case's row. on_progress: called once for each case. Raises OutputError.
    """
    planned = {record.row.output: record for record in records if record.row.output in pages}
    by_label_map, without = {}, []

    def write(record: Record) -> CaseError | None:
        output = record.row.output
        try:
            content = _page_of(record, references.get(output))
        except CaseError as error:
            return error
        publish(pages[output], content, overwrite=overwrite)
        return None

    threads = ThreadPoolExecutor(min(n_threads, _MOST_THREADS))
    try:
        for record, error in zip(planned.values(), threads.map(write, planned.values()), strict=True):
            on_progress()
            if error is None:
                by_label_map[record.row.output] = pages[record.row.output]
            else:
                without.append((record.row.case, f"{error} (so it has no viewer)"))
    finally:
        threads.shutdown(cancel_futures=True)
    return CaseFiles(by_label_map, tuple(merge_messages(without)))


def _with_label_map(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.row.status is not Status.FAILED]


def _page_of(record: Record, reference: Path | None) -> bytes:
    images = read_images(_case_of(record))
    row = record.row
    return encode_viewer(
        {modality: volume.voxels for modality, volume in images.volumes.items()},
        _labelled(Path(row.output), images, "label map"),
        affine=images.reference.affine,
        name=row.case,
        reference=None if reference is None else _labelled(reference, images, "reference"),
        weights=row.weights,
        warnings=record.warnings,
        side=side_in_words(record.document or {}),
        caveat=caveat_of(row.weights_sha256),
    )


def _case_of(record: Record) -> Case:
    """The images that the label map was made of. Raises CaseError where they are not known, not there, or not the same."""
    document = record.document or {}
    if (document.get("prepared_from") or {"record": ""}).get("record", "") is None:
        raise CaseError(f"{record.source}: {_NOT_KEPT}")
    try:
        inputs = {str(name): InputFile(**entry) for name, entry in document["inputs"].items()}
        files = {modality.value: Path(inputs[modality.value].path) for modality in CHANNELS}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CaseError(f"{record.source}: does not tell the files of the four images") from None
    if changed := changed_files(inputs, files):
        raise CaseError(f"{changed[0]}: is no longer the image that was segmented")
    return Case(record.row.case, {Modality(name): file for name, file in files.items()})


_NOT_KEPT: Final = (
    "its prepared images were not kept; segment the scans again by segment --prepare, with --keep-prepared DIR for this, or "
    "with --viewer, which writes the page itself"
)


def _labelled(path: Path, images: CaseImages, shows: str) -> Labelled:
    volume = load_volume(path)
    check_one_grid(volume, images.reference, names=(shows, "FLAIR"))
    class_map, labels = class_map_of(volume)
    return Labelled(class_map, labels or Labels.BRATS2020)
