"""The record of a prepared case, CASE.json, which says what was made of which scans; and the picture that may lie beside it.

One JSON object a case, the same that --json prints. Keys are stable within a schema version; more may be added.
"""

import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import scipy

import drunet_cli
from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.inputs import read_document
from drunet_cli.io.nifti import stored_header
from drunet_cli.prepare.preparation import Preparation, PreparationSettings

SCHEMA: Final = "drunet.preparation/1"
_CONVENTION: Final = "a transform takes positions in a scan to the BraTS grid; in mm along R, A and S, as NIfTI has them"


def describe_preparation(preparation: Preparation, settings: PreparationSettings) -> dict[str, Any]:
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
            "volume_ml": round(preparation.brain_ml, 3),
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
    """Where the record of a case's images is if `drunet prepare` has made them; None for images of other names."""
    flair = case.images[Modality.FLAIR]
    name, ending, _ = flair.name.rpartition(f"_{Modality.FLAIR}.nii.gz")
    return flair.with_name(f"{name}.json") if ending else None


def picture_beside(record: Path) -> Path:
    """Where the picture of a prepared case is, if there is one."""
    return record.with_name(f"{record.stem}_preview.png")


def read_picture(case: Case) -> bytes:
    """The picture of a prepared case, by its images. Raises OutputError."""
    record = record_beside(case)
    assert record is not None, "the images are those that drunet has just prepared"
    try:
        return picture_beside(record).read_bytes()
    except OSError as error:
        raise OutputError(f"{picture_beside(record)}: cannot be read: {error.strerror}") from error
