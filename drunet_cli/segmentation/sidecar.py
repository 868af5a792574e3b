"""What is kept of a run beside its label map: volumes, warnings, and where everything came from.

One JSON object a case, the same that `--json` prints. Keys are stable within a schema version; new ones may be added.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np

import drunet_cli
from drunet_cli.errors import MisuseError
from drunet_cli.io.checks import CaseWarning
from drunet_cli.io.geometry import Geometry
from drunet_cli.io.naming import stem
from drunet_cli.io.volumes import InputFile
from drunet_cli.network.engine import Engine
from drunet_cli.segmentation.predict import Plan, Postprocessing
from drunet_cli.weights.checkpoint import Checkpoint

SCHEMA: Final = "drunet.segmentation/1"
_LARGEST_SIDECAR_BYTES: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Rates of the samples, one for each set of weights. given: by the user, where the weights do not record theirs."""

    rates: tuple[float, ...]
    given: bool

    def described(self) -> dict[str, Any]:
        """For the sidecar."""
        rate: Any = self.rates[0] if len(set(self.rates)) == 1 else list(self.rates)
        return {"rate": rate, "source": "given" if self.given else "recorded in the weights"}


def dropout_of(checkpoints: Sequence[Checkpoint], *, given: float | None) -> Dropout:
    """The rates of the samples: as given, else as the weights record them. Raises MisuseError for weights that record none."""
    if given is not None:
        return Dropout(rates=(given,) * len(checkpoints), given=True)
    metadata = [checkpoint.metadata for checkpoint in checkpoints]
    return Dropout(rates=tuple(recorded_rate(each.name, each.dropout) for each in metadata), given=False)


def recorded_rate(name: str, dropout: float | None) -> float:
    """The rate that weights of this name record, for samples. Raises MisuseError for none."""
    if not dropout:
        what = "were trained without dropout" if dropout == 0 else "do not record their dropout rate"
        raise MisuseError(f"--mc-samples: the weights {name} {what}; name one by --dropout")
    return dropout


def sidecar_path(label_map: Path) -> Path:
    """Beside the label map, by its stem: seg.nii.gz has seg.json."""
    return label_map.with_name(f"{stem(label_map)}.json")


def describe_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """sha256 is that of the file that was opened, source_sha256 that of the authors' file it was made from."""
    metadata = checkpoint.metadata
    return {
        "name": metadata.name,
        "sha256": checkpoint.sha256,
        "source_sha256": metadata.source_sha256 or None,
        "origin": metadata.origin or None,
        "base_width": metadata.base_width,
        "bn_epsilon": metadata.bn_epsilon,
    }


def describe_inputs(inputs: Mapping[str, InputFile]) -> dict[str, dict[str, Any]]:
    """Path, size, time of the last change and SHA-256 of every input file."""
    return {modality: asdict(file) for modality, file in inputs.items()}


def describe_geometry(geometry: Geometry) -> dict[str, Any]:
    """How the case lay and what was done to it; `frame` is untouched, shifted (padded or cropped) or resampled."""
    frame = "resampled" if geometry.resampled else "untouched" if geometry.untouched else "shifted"
    return {
        "shape": list(geometry.shape),
        "axes": geometry.axcodes,
        "frame": frame,
        "frame_start_mm": [geometry.x.start_mm, geometry.y.start_mm],
        "in_plane_spacing_mm": [round(geometry.x.spacing_mm, 6), round(geometry.y.spacing_mm, 6)],
        "slice_spacing_mm": round(geometry.slice_spacing_mm, 6),
    }


def describe_settings(plan: Plan, postprocessing: Postprocessing, dropout: Dropout | None) -> dict[str, Any]:
    """What may change a voxel beside weights, engine, precision and device."""
    return {
        "window": plan.window.value,
        "tta": "flips" if plan.flips else "none",
        "mc_samples": plan.mc_samples,
        "dropout": None if dropout is None else dropout.described(),
        "seed": plan.seed if plan.mc_samples else None,
        "min_volume_ml": postprocessing.min_volume_ml,
        "min_enhancing_ml": postprocessing.min_enhancing_ml,
    }


def describe_warnings(warnings: Sequence[CaseWarning]) -> list[dict[str, str]]:
    """Code and text of each."""
    return [{"code": warning.code, "message": warning.message} for warning in warnings]


def describe_versions(engine: Engine) -> dict[str, str]:
    """Of whatever may change a voxel."""
    versions = {"drunet": drunet_cli.__version__, "python": platform.python_version()}
    return versions | dict(engine.versions) | {"numpy": np.__version__, "nibabel": nib.__version__}


def encode_sidecar(document: Mapping[str, Any]) -> bytes:
    """The object as JSON, indented for people."""
    return json.dumps(document, indent=2).encode() + b"\n"


def weights_in(document: Mapping[str, Any]) -> list[Any]:
    """What a sidecar's object says of each set of weights."""
    weights = document["weights"]
    return weights if isinstance(weights, list) else [weights]


def files_beside(label_map: Path, document: Mapping[str, Any]) -> dict[Path, str]:
    """The files beside a label map that its sidecar's object names, each with its SHA-256."""
    files = document.get("files")
    named = files.items() if isinstance(files, dict) else []
    return {label_map.with_name(name): str(sha256) for name, sha256 in named if name and Path(name).name == name}


def is_sidecar(path: Path) -> bool:
    """Whether a file is one that drunet wrote beside a label map."""
    return read_sidecar(path) is not None


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """The object of a file that drunet wrote beside a label map; None for any other, and where there is none."""
    try:
        with path.open("rb") as stream:
            document = json.loads(stream.read(_LARGEST_SIDECAR_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(document, dict) and str(document.get("schema", "")).startswith("drunet.segmentation/")
    return document if ours else None
