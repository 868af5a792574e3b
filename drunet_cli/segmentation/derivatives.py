"""A folder of results for other programs: the labels in words and colours, and the description of a BIDS derivatives data set.

The colour tables serve ITK-SNAP and 3D Slicer, in the colours of our pictures. Enhancing tumour has a row for 4 and one for 3,
as no label map holds both: one file serves all label maps.

Every run into a data set adds to its description what it brings, the data sets that its images come from above all; whatever
else people write there stays. Source: BIDS 1.10.
"""

import itertools
import json
import os
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import drunet_cli
from drunet_cli.brats import CLASS_COLOURS, CLASS_NAMES, TUMOUR_CLASSES, Colour, Labels, label_value
from drunet_cli.errors import OutputError
from drunet_cli.io.atomic import check_writable, publish, take_turns
from drunet_cli.io.naming import ORIGINAL_SPACE
from drunet_cli.segmentation.summary import SUMMARY, WORKBOOK

ITKSNAP: Final = "labels_itksnap.txt"
SLICER: Final = "labels_slicer.ctbl"

_ROWS: Final[dict[int, tuple[str, Colour]]] = {
    label_value(index, labels): (f"{index.name} {CLASS_NAMES[index]}", CLASS_COLOURS[index])
    for index in TUMOUR_CLASSES
    for labels in sorted(Labels, reverse=True)
}


_DESCRIPTION: Final = "dataset_description.json"
_IGNORED: Final = ".bidsignore"
_BIDS_VERSION: Final = "1.10.0"
_GENERATOR: Final = "drunet"
LABEL_ABBREVIATIONS: Final = ("BG", *(index.name for index in TUMOUR_CLASSES))  # BIDS' own for the background
_LESION: Final = 7  # in BIDS' own list of labels ("Common image-derived labels"), which knows no parts of a tumour
# Files that BIDS has no place for, in the syntax of .gitignore.
_NOT_OF_BIDS: Final = (
    SUMMARY,
    WORKBOOK,
    ITKSNAP,
    SLICER,
    "*_preview.png",
    "*_prepared.png",
    "*.html",  # of `segment --viewer`, and of `report` where its page is written here
    "*_views",  # the validator knows no slash at the end
    "*_uncertainty.nii.gz",
    "*_entropy.nii.gz",
)

_README: Final = """\
Brain tumours in MRI, segmented by drunet.

Each *_dseg.nii.gz is a label map of one session. The table *_dseg.tsv beside it names the labels and their colours, and
*_dseg.json tells volumes, warnings, images, weights and settings. summary.csv has a row for each session; summary.xlsx is the
same table for Excel and LibreOffice. Files that BIDS has no place for are named in .bidsignore.
"""


def colour_table(name: str) -> str:
    """The file of this name: label descriptions of ITK-SNAP, or a colour table of 3D Slicer."""
    if name == ITKSNAP:
        header = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
        lines = [_itksnap_row(0, (0, 0, 0), "Clear Label", shown=0)]
        lines += [_itksnap_row(value, colour, words, shown=1) for value, (words, colour) in _ROWS.items()]
    else:
        header = [f"# Color table file {SLICER}", f"# {1 + len(_ROWS)} values"]
        lines = ["0 Background 0 0 0 0"]
        for value, (words, (red, green, blue)) in _ROWS.items():
            lines.append(f"{value} {words.replace(' ', '_')} {red} {green} {blue} 255")
    return "\n".join([*header, *lines, ""])


def write_colour_tables(folder: Path) -> None:
    """Write both files where they are not there; what is there stays, as somebody may have changed the colours.

    Raises OutputError.
    """
    for name in (ITKSNAP, SLICER):
        if not os.path.lexists(folder / name):
            # Another run may write the same bytes at the same time.
            publish(folder / name, colour_table(name).encode(), overwrite=True)


def _itksnap_row(value: int, colour: Colour, words: str, *, shown: int) -> str:
    red, green, blue = colour
    return f'{value:5}{red:6}{green:5}{blue:5}{shown:9}{shown:3}{shown:3}    "{words}"'


def check_dataset(dataset: Path) -> None:
    """Raise OutputError for a folder that is another data set, or whose description cannot be read or written."""
    check_writable(dataset / _DESCRIPTION, overwrite=True)
    _read_ours(dataset)


def describe_dataset(dataset: Path, images: Iterable[Path]) -> dict[Path, str]:
    """Complete the data set's description; return the BIDS URI of each image that lies in a data set.

    images: those that a label map is made of; paths of no file, such as that of a DICOM series, are left out.
    Runs that describe the data set at once take turns. Raises OutputError.
    """
    dataset = _absolute(dataset)
    roots = {image: root for image in images if image.is_file() and (root := _root_of(image, dataset)) is not None}
    sources = [root for root in dict.fromkeys(roots.values()) if root != dataset]
    description = _read_ours(dataset) or {}
    if _completed(description, dataset, sources) != description:
        with take_turns(dataset / _DESCRIPTION):
            before = _read_ours(dataset)
            description = _completed(before or {}, dataset, sources)
            if before is None:
                _write_companions(dataset)
            publish(dataset / _DESCRIPTION, json.dumps(description, indent=2).encode() + b"\n", overwrite=True)
    names = {address: name for name, address in _links_of(description).items()} | {".": ""}  # no name is the data set itself
    return {
        image: f"bids:{names[_address(root, dataset)]}:{_absolute(image).relative_to(root).as_posix()}"
        for image, root in roots.items()
    }


def facts_of(uris: Mapping[Path, str], images: Iterable[Path], reference: Path, *, words: str) -> dict[str, Any]:
    """The fields of BIDS that a map's sidecar has. uris: by image, as `describe_dataset` gives them.

    images: the sources of the map. reference: the image on whose grid it lies. words: what the map shows.
    """
    sources = [uris[image] for image in images if image in uris]
    address = uris.get(reference) or (_absolute(reference).as_uri() if reference.is_file() else ORIGINAL_SPACE)
    return {
        "Description": words,
        **({"Sources": sources} if sources else {}),
        "SpatialReference": address,
        "Manual": False,
    }


def lookup_table(labels: Labels) -> bytes:
    """The labels of a label map for readers of BIDS, as dseg.tsv has them."""
    lines = ["index\tname\tabbreviation\tcolor\tmapping"]
    for index in TUMOUR_CLASSES:
        colour = "".join(f"{part:02x}" for part in CLASS_COLOURS[index])
        lines.append(f"{label_value(index, labels)}\t{CLASS_NAMES[index]}\t{index.name}\t#{colour}\t{_LESION}")
    return "\n".join([*lines, ""]).encode()


def _read_ours(dataset: Path) -> dict[str, Any] | None:
    """The description that is there; None where there is none. Raises OutputError for one of another data set."""
    path = dataset / _DESCRIPTION
    try:
        description = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: cannot be read as JSON ({error}); mend it, or name another OUT") from error
    if not any(each.get("Name") == _GENERATOR for each in _generators_of(description)):
        remedy = f"name a folder of its own, such as {dataset / 'derivatives' / _GENERATOR}"
        raise OutputError(f"{path}: describes a data set that drunet did not make; {remedy}")
    return dict(description)


def _completed(description: Mapping[str, Any], dataset: Path, sources: Iterable[Path]) -> dict[str, Any]:
    """A description with everything that this run adds. sources: the roots of the data sets that images come from."""
    ours = {"Name": _GENERATOR, "Version": drunet_cli.__version__}
    generators = _generators_of(description)
    known = any(each.get("Name") == ours["Name"] and each.get("Version") == ours["Version"] for each in generators)
    links = _links_of(description)
    entries = list(description.get("SourceDatasets") or [])
    for root in sources:
        address = _address(root, dataset)
        if address not in links.values():
            theirs = _description_of(root)
            links[_free_name(root, theirs, links)] = address
            doi = theirs.get("DatasetDOI")
            entries.append({"URL": address, **({"DOI": str(doi)} if doi else {})})
    return {
        "Name": "Brain tumours segmented by drunet",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        **description,
        "GeneratedBy": generators if known else [*generators, ours],
        **({"SourceDatasets": entries} if entries else {}),
        **({"DatasetLinks": links} if links else {}),
    }


def _write_companions(dataset: Path) -> None:
    """Write the other files of a new data set where they are not there."""
    if not os.path.lexists(dataset / _IGNORED):
        publish(dataset / _IGNORED, "\n".join([*_NOT_OF_BIDS, ""]).encode(), overwrite=True)
    if not any(dataset.glob("README*")):
        publish(dataset / "README", _README.encode(), overwrite=True)


def _generators_of(description: object) -> list[dict[str, Any]]:
    entries = description.get("GeneratedBy") if isinstance(description, Mapping) else None
    return [each for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []


def _links_of(description: Mapping[str, Any]) -> dict[str, str]:
    links = description.get("DatasetLinks")
    return {str(name): str(address) for name, address in links.items()} if isinstance(links, dict) else {}


def _description_of(root: Path) -> dict[str, Any]:
    """The description of a data set that images come from; empty where it cannot be read."""
    try:
        description = json.loads((root / _DESCRIPTION).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return description if isinstance(description, dict) else {}


def _free_name(root: Path, description: Mapping[str, Any], taken: Container[str]) -> str:
    """A name for a data set in BIDS URIs: raw, or that of its folder where it is not raw; with a number where it is taken."""
    is_raw = description.get("DatasetType", "raw") == "raw"
    name = "raw" if is_raw else re.sub(r"[^0-9A-Za-z.-]+", "-", root.name).strip("-") or "source"
    return next(free for n in itertools.count(1) if (free := name if n == 1 else f"{name}{n}") not in taken)


def _root_of(image: Path, dataset: Path) -> Path | None:
    """The data set that an image lies in, by its path as it is, links and all: `dataset`, the nearest other one, or None."""
    folders = _absolute(image).parents
    return next((each for each in folders if each == dataset or (each / _DESCRIPTION).is_file()), None)


def _address(root: Path, dataset: Path) -> str:
    """The link to a data set: a relative path where the folder of results lies within and moves with it, else a URI."""
    return os.path.relpath(root, dataset) if dataset.is_relative_to(root) else root.as_uri()


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  # links stay: data sets of git-annex consist of them
