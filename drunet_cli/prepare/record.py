"""The record of a prepared case, CASE.json, which says what was made of which scans; and labels carried back to these scans.

One JSON object a case, the same that --json prints. Keys are stable within a schema version; more may be added. The record has
the header of each scan and the transform that brought the scan to the BraTS grid, so that labels come back to the voxels that
the scanner made (native space) without the scans and without a registration.
"""

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt
import scipy
from scipy import ndimage

import drunet_cli
from drunet_cli.brats import CHANNELS, TUMOUR_CLASSES, ClassMap, Modality, round_ml
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning, WarningCode
from drunet_cli.io.geometry import Affine, box_of
from drunet_cli.io.inputs import InputFile, read_document
from drunet_cli.io.nifti import Header, header_of, stored_header

if TYPE_CHECKING:
    from drunet_cli.prepare.preparation import Preparation, PreparationSettings

SCHEMA: Final = "drunet.preparation/1"
_CONVENTION: Final = "a transform takes positions in a scan to the BraTS grid; in mm along R, A and S, as NIfTI has them"
# With these a sidecar suffices to go back to the scans, also where the prepared files are gone.
_IN_SIDECARS: Final = ("inputs", "transforms", "convention", "moved", "brain", "atlas", "untouched")
_MARGIN: Final = 1  # voxels, over which linear interpolation fades


def describe_preparation(preparation: "Preparation", settings: "PreparationSettings") -> dict[str, Any]:
    """The record's object, without the SHA-256 of the files."""
    sources = {modality: preparation.scans[modality].volume for modality in CHANNELS}
    return {
        "schema": SCHEMA,
        "case": preparation.case.name,
        "folder": str(settings.folder / preparation.case.name) if settings.keep else None,
        "untouched": preparation.untouched,
        "warnings": [{"code": warning.code, "message": warning.message} for warning in preparation.warnings],
        "inputs": {modality: asdict(volume.source) for modality, volume in sources.items() if volume.source is not None},
        "grids": {
            modality: {"shape": list(volume.shape), "affine": volume.affine.tolist(), "header": stored_header(volume.header)}
            for modality, volume in sources.items()
        },
        "transforms": {modality: preparation.transforms[modality].tolist() for modality in CHANNELS},
        "convention": _CONVENTION,
        "moved": {
            modality: {"mm": round(found.moved_mm, 3), "degrees": round(found.moved_degrees, 3)}
            for modality, found in preparation.registrations.items()
        },
        "similarity": {
            modality: {name: round(value, 4) for name, value in asdict(found).items()}
            for modality, found in preparation.similarity.items()
        },
        "brain": {
            "method": preparation.method,
            "sha256": preparation.mask_sha256,
            "volume_ml": round_ml(preparation.brain_ml),
        },
        "atlas": {"name": preparation.atlas, "sha256": preparation.atlas_sha256},
        "settings": settings.recorded(),
        "versions": {
            "drunet": drunet_cli.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "nibabel": nib.__version__,
            **preparation.tools,
        },
        "seconds": round(preparation.seconds, 3),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def read_record(path: Path) -> dict[str, Any] | None:
    """The object of a record that drunet wrote; None for any other file, and where there is none."""
    return read_document(path, schema="drunet.preparation/")


def record_beside(case: Case) -> Path | None:
    """The path of the record of a case's images, if they have the names of `drunet prepare`; None for other names."""
    flair = case.images[Modality.FLAIR]
    name, ending, _ = flair.name.rpartition(f"_{Modality.FLAIR}.nii.gz")
    return flair.with_name(f"{name}.json") if ending else None


def picture_beside(record: Path) -> Path:
    """The path of the picture of a prepared case, if there is one."""
    return record.with_name(f"{record.stem}_preview.png")


def read_picture(case: Case) -> bytes:
    """The picture of a prepared case, by its images. Raises OutputError."""
    record = record_beside(case)
    assert record is not None, "the images are those that drunet has just prepared"
    try:
        return picture_beside(record).read_bytes()
    except OSError as error:
        raise OutputError(f"{picture_beside(record)}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class NativeSpace:
    """The grid of a raw scan. transform: takes positions in the scan to positions on the BraTS grid, RAS mm."""

    modality: Modality
    scan: str
    header: Header
    shape: tuple[int, int, int]
    affine: Affine
    transform: Affine


@dataclass(frozen=True)
class PreparedFrom:
    """The raw scans of a prepared case, as its record describes them.

    record: the path of CASE.json; None where the prepared files are removed when the run is over. summary: the part of the
    record that the sidecar of a label map repeats. warnings: those of the preparation.
    """

    record: Path | None
    summary: Mapping[str, Any]
    spaces: Mapping[Modality, NativeSpace]
    warnings: tuple[CaseWarning, ...]


def is_prepared(case: Case) -> bool:
    """Whether a record of drunet lies beside a case's images. Reads no image."""
    record = record_beside(case)
    return record is not None and read_record(record) is not None


def origin_of(case: Case, inputs: Mapping[str, InputFile]) -> PreparedFrom | None:
    """The raw scans of a case, by the record beside its images; None without a record, or for a record of other images.

    inputs: the images as they were read.
    """
    record = record_beside(case)
    document = None if record is None else read_record(record)
    if record is None or document is None:
        return None
    try:
        if any(document["files"][Path(file.path).name] != file.sha256 for file in inputs.values()):
            return None
        spaces = {modality: _space(document, modality, record) for modality in Modality}
        warnings = [CaseWarning(WarningCode(each["code"]), str(each["message"])) for each in document["warnings"]]
        summary = {name: document[name] for name in _IN_SIDECARS}
        return PreparedFrom(None if document["folder"] is None else record, summary, spaces, tuple(warnings))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def needed_origin(case: Case, inputs: Mapping[str, InputFile]) -> PreparedFrom:
    """The raw scans of a case, as `origin_of`. Raises CaseError where there are none."""
    if (origin := origin_of(case, inputs)) is not None:
        return origin
    raise CaseError(
        f"{case.name}: is not a case that drunet prepare has made, or its images were changed since, so that the way back to a "
        "scan is unknown; prepare it by drunet prepare, or leave --in-space out"
    )


def _space(document: Mapping[str, Any], modality: Modality, record: Path) -> NativeSpace:
    grid = document["grids"][modality]
    i, j, k = grid["shape"]
    transform = np.array(document["transforms"][modality], dtype=np.float64).reshape(4, 4)
    affine = np.array(grid["affine"], dtype=np.float64).reshape(4, 4)
    header = header_of(grid["header"], name=str(record))
    return NativeSpace(modality, str(document["inputs"][modality]["path"]), header, (i, j, k), affine, transform)


def labels_in(class_map: ClassMap, affine: Affine, space: NativeSpace) -> ClassMap:
    """Class indices [I, J, K] of a prepared case at the voxels of a raw scan: its own [I, J, K].

    affine: of the class map, voxel indices to RAS mm. Each class is interpolated linearly, background too, and the largest
    share wins, so that edges are as smooth as the scan's voxels allow.
    """
    result = np.zeros(space.shape, dtype=np.uint8)
    box = box_of(class_map > 0)
    if box is None:
        return result
    to_prepared = np.linalg.inv(affine) @ space.transform @ space.affine
    region = _region(np.asarray(np.linalg.inv(to_prepared)), box, space.shape)
    first = np.array([part.start for part in region])
    inner = tuple(slice(max(0, part.start - _MARGIN), part.stop + _MARGIN) for part in box)
    offset = to_prepared[:3, :3] @ first + to_prepared[:3, 3] - [part.start for part in inner]
    size = tuple(part.stop - part.start for part in region)
    if min(size) <= 0:
        return result
    best = np.zeros(size, dtype=np.uint8)
    share = np.ones(size, dtype=np.float32)  # of background
    shares = {}
    for tumour_class in TUMOUR_CLASSES:
        mask = (class_map[inner] == tumour_class).astype(np.float32)
        if mask.any():
            shares[tumour_class] = _interpolated(mask, to_prepared, offset, size)
            share -= shares[tumour_class]
    for tumour_class, found in shares.items():
        larger = found > share
        best[larger] = tumour_class
        np.maximum(share, found, out=share)
    result[region] = best
    return result


def _interpolated(
    mask: npt.NDArray[np.float32], matrix: Affine, offset: npt.NDArray[np.float64], size: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = ndimage.affine_transform(
        mask, matrix[:3, :3], offset, output_shape=size, output=np.float32, order=1, mode="constant"
    )
    return found


def _region(from_prepared: Affine, box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """The part of a scan that a box on the prepared grid may reach."""
    corners = np.array(np.meshgrid(*((part.start - _MARGIN, part.stop - 1 + _MARGIN) for part in box))).reshape(3, -1).T
    places = corners @ from_prepared[:3, :3].T + from_prepared[:3, 3]
    first = np.clip(np.floor(places.min(axis=0)).astype(int), 0, shape)
    end = np.clip(np.ceil(places.max(axis=0)).astype(int) + 1, first, shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(first, end, strict=True))
    return i, j, k
