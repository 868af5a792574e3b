"""A page of the viewer for each case of a report, made of the files that the runs have read and written."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drunet_cli.brats import CHANNELS, Labels, Modality
from drunet_cli.errors import CaseError
from drunet_cli.evaluation.pairs import label_maps_in
from drunet_cli.io.atomic import write_atomically
from drunet_cli.io.case import Case
from drunet_cli.io.checks import grids_differ
from drunet_cli.io.inputs import InputFile, changed_files
from drunet_cli.io.naming import beside, stem
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import CaseImages, class_map_of, read_images
from drunet_cli.report.runs import Record, told_once
from drunet_cli.segmentation.outputs import VIEW_ENDING
from drunet_cli.segmentation.summary import Status
from drunet_cli.segmentation.viewer import Labelled, encode_viewer
from drunet_cli.weights.registry import caveat_of

_MOST_THREADS: Final = 4  # a case takes some 300 MB meanwhile
_LABEL_MAP_AND_FLAIR: Final = ("label map", "FLAIR")
_REFERENCE_AND_FLAIR: Final = ("reference", "FLAIR")


@dataclass(frozen=True)
class CaseFiles:
    """A file of each case. by_label_map: by the output of its row. notices: why other cases have none, a line each."""

    by_label_map: Mapping[str, Path]
    notices: tuple[str, ...] = ()


NO_FILES: Final = CaseFiles({})


def pages_beside_label_maps(records: Sequence[Record]) -> CaseFiles:
    """The pages that `segment --viewer` has written, as far as sidecars name them and they are there."""
    found = {}
    for record in _with_label_map(records):
        page = beside(Path(record.row.output), VIEW_ENDING)
        named = (record.document or {}).get("files") or {}
        if any(str(name).endswith(VIEW_ENDING) for name in named) and page.is_file():
            found[record.row.output] = page
    return CaseFiles(found)


def plan_pages(records: Sequence[Record], folder: Path) -> dict[str, Path]:
    """Where the page of each case with a label map is to be written, by the output of its row.

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
    if not os.path.isdir(path):  # noqa: PTH112  # unlike Path.is_dir it raises for no path
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
    return CaseFiles(found, tuple(told_once(missing)))


def write_pages(
    records: Sequence[Record],
    pages: Mapping[str, Path],
    references: Mapping[str, Path],
    *,
    overwrite: bool,
    n_threads: int,
    on_done: Callable[[], None] = lambda: None,
) -> CaseFiles:
    """Read every case of the plan and write its page; a case whose files are not there or have changed gets none, and a notice.

    references: by the output of a case's row. on_done: called once for each case. Raises OutputError.
    """
    planned = {record.row.output: record for record in records if record.row.output in pages}
    written, without = {}, []

    def write(record: Record) -> CaseError | None:
        output = record.row.output
        try:
            content = _page_of(record, references.get(output))
        except CaseError as error:
            return error
        with write_atomically(pages[output], overwrite=overwrite) as stream:
            stream.write(content)
        return None

    threads = ThreadPoolExecutor(min(n_threads, _MOST_THREADS))
    try:
        for record, error in zip(planned.values(), threads.map(write, planned.values()), strict=True):
            on_done()
            if error is None:
                written[record.row.output] = pages[record.row.output]
            else:
                without.append((record.row.case, f"{error} (so it has no viewer)"))
    finally:
        threads.shutdown(cancel_futures=True)
    return CaseFiles(written, tuple(told_once(without)))


def _with_label_map(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.row.status is not Status.FAILED]


def _page_of(record: Record, reference: Path | None) -> bytes:
    images = read_images(_case_of(record))
    row = record.row
    return encode_viewer(
        {modality: volume.voxels for modality, volume in images.volumes.items()},
        _labelled(Path(row.output), images, _LABEL_MAP_AND_FLAIR),
        affine=images.reference.affine,
        name=row.case,
        reference=None if reference is None else _labelled(reference, images, _REFERENCE_AND_FLAIR),
        weights=row.weights,
        warnings=row.warnings,
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


def _labelled(path: Path, images: CaseImages, names: tuple[str, str]) -> Labelled:
    volume = load_volume(path)
    if (error := grids_differ(volume, images.reference, names=names)) is not None:
        raise error
    class_map, labels = class_map_of(volume)
    return Labelled(class_map, labels or Labels.BRATS2020)
