"""What runs leave in their folders, without a network: sidecars as segmentation.pipeline writes them, and small label maps."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drunet_cli.brats import volumes_ml
from drunet_cli.segmentation.outputs import SCHEMA


def document_of(case: str, *, counts: tuple[int, int, int] = (1000, 2000, 500), warnings: Sequence[str] = ()) -> dict[str, Any]:
    """The object of a sidecar. counts: voxels of NCR, ED and ET, a cubic millimetre each. warnings: codes."""
    ncr, ed, et = counts
    voxels = {"NCR": ncr, "ED": ed, "ET": et, "WT": ncr + ed + et, "TC": ncr + et}
    return {
        "schema": SCHEMA,
        "case": case,
        "volumes_ml": volumes_ml(voxels, 0.001),
        "voxels": voxels,
        "warnings": [{"code": code, "message": f"what {code} means"} for code in warnings],
        "weights": {"name": "brats2020", "sha256": "5" * 64, "source_sha256": None, "origin": "a paper", "base_width": 16},
        "inputs": {},
        "geometry": {"shape": [240, 240, 155]},
        "device": "cpu",
        "device_name": "a CPU",
        "settings": {"engine": "torch", "precision": "float32", "batch_size": 2, "threads": 4, "window": "full"},
        "versions": {"drunet": "1.0", "python": "3.11"},
        "seconds": {"read": 0.25, "network": 1.5},
    }


def write_outputs(folder: Path, document: Mapping[str, Any], *, name: str | None = None) -> Path:
    """A label map of its own bytes and its sidecar, which is returned."""
    name = name or document["case"]
    folder.mkdir(parents=True, exist_ok=True)
    label_map = folder / f"{name}.nii.gz"
    content = f"the label map of {name}".encode(errors="surrogateescape")
    label_map.write_bytes(content)
    completed = {**document, "output": f"where/it/was/{label_map.name}", "output_sha256": hashlib.sha256(content).hexdigest()}
    sidecar = folder / f"{name}.json"
    sidecar.write_text(json.dumps(completed, indent=2))
    return sidecar


def write_case(folder: Path, case: str, *, warnings: Sequence[str] = ()) -> Path:
    """The same of a case by its name."""
    return write_outputs(folder, document_of(case, warnings=warnings))
