"""drunet's own weights file: safetensors, with the facts about the weights in its header. No torch.

The tensors are those of DRUNet104's state dict, float32 or float16, without `num_batches_tracked`. The header has one key of
metadata, `drunet`, whose value is the JSON object of Metadata. It is one key because safetensors writes several in no fixed
order, and the same import must give the same bytes everywhere.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from pydantic import Field, TypeAdapter, ValidationError

from drunet_cli.brats import CHANNELS, REGIONS
from drunet_cli.errors import WeightsError, fault_in_words
from drunet_cli.io.atomic import publish
from drunet_cli.io.inputs import sha256_of
from drunet_cli.weights.structure import MAX_BASE_WIDTH, tensor_shapes

State: TypeAlias = dict[str, npt.NDArray[np.float32]]

_METADATA_KEY: Final = "drunet"
_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """The changes to the label maps of a network, in mL; 0 leaves a step out.

    min_volume_ml: connected parts of the whole tumour below this are removed; or three volumes, by region: parts of the whole
    tumour (WT) below the first are removed, those of the core (TC) below the second become oedema, and those of enhancing
    tumour (ET) below the third become necrotic core. min_enhancing_ml: enhancing tumour that is less than this in all becomes
    necrotic core.
    """

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid"}  # an unknown step cannot be left aside

    min_volume_ml: float | tuple[float, float, float] = 0.0
    min_enhancing_ml: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a volume below 0, or not finite."""
        for name, value in asdict(self).items():
            volumes = value if isinstance(value, tuple) and name == "min_volume_ml" else (value,)
            if len(volumes) not in (1, len(REGIONS)):
                raise ValueError(f"{name}={value}: give one volume, or one each for {', '.join(REGIONS)}")
            numbers = all(isinstance(volume, int | float) and not isinstance(volume, bool) for volume in volumes)
            if not (numbers and all(0 <= volume < math.inf for volume in volumes)):
                raise ValueError(f"{name}={value}: must be 0 or more, and finite")

    @property
    def does_anything(self) -> bool:
        """Whether a label map may change."""
        return any(self.least_parts_ml.values()) or self.min_enhancing_ml > 0

    @property
    def least_parts_ml(self) -> dict[str, float]:
        """The smallest connected part that stays, by region."""
        volumes = self.min_volume_ml if isinstance(self.min_volume_ml, tuple) else (self.min_volume_ml, 0.0, 0.0)
        return dict(zip(REGIONS, volumes, strict=True))


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The facts about a set of weights.

    name: the registry's, or the file's stem. bn_epsilon: the batch-norm epsilon to run them with.
    dropout: the rate they were trained with, None where it is not known.
    window: "auto" where they were trained on windows of the frame and are run on windows, "full" where they were not.
    origin: where the source file came from (URL or file name), or how it was trained; source_sha256: of that file.
    network: fingerprint of the network that was trained, if somebody had changed it; else empty.
    postprocessing: what is recommended for their label maps, by cases that were held out; None where nobody measured.
    """

    __pydantic_config__: ClassVar = {"strict": True}

    name: str
    base_width: Annotated[int, Field(ge=1, le=MAX_BASE_WIDTH)]
    bn_epsilon: Annotated[float, Field(gt=0, lt=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    window: Literal["full", "auto"] = "full"
    origin: str = ""
    source_sha256: str = ""
    licence: str = ""
    citation: str = ""
    network: str = ""
    postprocessing: Postprocessing | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights in memory: the state dict's arrays, their metadata, and the SHA-256 of the file they were read from."""

    metadata: Metadata
    state: State
    sha256: str


def check_tensors(checkpoint: Checkpoint) -> None:
    """Raise WeightsError naming the first tensor that is missing, left over, or of another shape than the network's."""
    metadata, state = checkpoint.metadata, checkpoint.state
    expected = tensor_shapes(metadata.base_width)
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise WeightsError(f"weights {metadata.name}: tensor {name} is missing")
        if name not in expected:
            raise WeightsError(f"weights {metadata.name}: tensor {name} is left over; DR-Unet104 has none of that name")
        if state[name].shape != expected[name]:
            shapes = f"{state[name].shape}, base width {metadata.base_width} needs {expected[name]}"
            raise WeightsError(f"weights {metadata.name}: tensor {name} has shape {shapes}")


def write_checkpoint(path: Path, state: State, metadata: Metadata, *, overwrite: bool) -> None:
    """Write a checkpoint, complete or not at all. Raises OutputError."""
    content = encode_checkpoint(state, metadata)
    publish(path, content, overwrite=overwrite)


def encode_checkpoint(state: Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.float16]], metadata: Metadata) -> bytes:
    """Make the bytes of a checkpoint's file."""
    document = {"format": _FORMAT, "channels": list(CHANNELS), **asdict(metadata)}
    if not metadata.network:  # as version 0.1.0 wrote it
        del document["network"]
    if metadata.postprocessing is None:
        del document["postprocessing"]
    return safetensors.numpy.save(dict(state), {_METADATA_KEY: json.dumps(document, sort_keys=True)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint whole; float16 comes back as float32.

    Raises WeightsError when the file is damaged, is not drunet's, or holds values that are not finite.
    """
    metadata = read_metadata(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            state = {key: _tensor(file, key, path) for key in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    return Checkpoint(metadata=metadata, state=state, sha256=sha256_of(path, error=WeightsError))


def read_metadata(path: Path) -> Metadata:
    """Read the metadata alone, which takes no time. Raises WeightsError."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            document = (file.metadata() or {}).get(_METADATA_KEY)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such weights file") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    except safetensors.SafetensorError as error:
        # safetensors calls it so where the file's length is not the one in its header.
        wrong_length = "incomplete metadata" in str(error) or "invalid header length" in str(error)
        reason = "it is cut short or too long; copy or download it again" if wrong_length else error
        raise WeightsError(f"{path}: not a readable safetensors file: {reason}") from error
    if document is None:
        raise WeightsError(
            f"{path}: lacks drunet's metadata (base width, epsilon); give weights that drunet wrote, or a Keras .h5"
        )
    try:
        return _parsed(document)
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: its drunet metadata cannot be understood: {error}") from error


def _parsed(document: str) -> Metadata:
    """Check the metadata. Fields that this version does not know are left aside; absent fields keep their defaults."""
    facts = dict(json.loads(document))
    if facts.get("format") != _FORMAT:
        raise ValueError(f"format {facts.get('format')}; this drunet reads format {_FORMAT}")
    if facts.get("channels") != list(CHANNELS):
        raise ValueError(f"channels {facts.get('channels')}; this drunet feeds {list(CHANNELS)}")
    try:
        return _reader().validate_json(document)
    except ValidationError as error:
        raise ValueError(fault_in_words(error.errors()[0])) from error


@functools.cache
def _reader() -> TypeAdapter[Metadata]:
    return TypeAdapter(Metadata)


def _tensor(file: Any, key: str, path: Path) -> npt.NDArray[np.float32]:
    number_format = file.get_slice(key).get_dtype()  # first: numpy has no bfloat16 to read one into
    if number_format not in ("F32", "F16"):
        raise WeightsError(f"{path}: tensor {key} is {number_format}; float32 or float16 is needed")
    array: npt.NDArray[Any] = file.get_tensor(key)
    if not np.isfinite(array).all():
        raise WeightsError(f"{path}: tensor {key} holds values that are not finite")
    if key.endswith("running_var") and array.size and array.min() < 0:
        raise WeightsError(f"{path}: tensor {key} holds a negative variance")
    return array.astype(np.float32, copy=False)
