"""Weights read from a file of whichever kind, and whether they are those that the registry knows by a name."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from drunet_cli.errors import WeightsError
from drunet_cli.io.inputs import file_sha256
from drunet_cli.weights.checkpoint import Checkpoint, Metadata, check_tensors, read_checkpoint
from drunet_cli.weights.registry import PAPER, Entry

_HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"


def read_source(
    path: Path, *, name: str | None = None, bn_epsilon: float, entry: Entry | None = None, origin: str = ""
) -> Checkpoint:
    """Read weights from a Keras HDF5 file, or from a drunet .safetensors file, which says of itself what it is.

    The content decides which, not the suffix. name: theirs from now on; without it that which is recorded, or the file's.
    bn_epsilon: for Keras files, which do not record it. entry: whose licence and citation a Keras file has. Raises
    WeightsError unless every tensor of the network is there once, of its shape, and finite.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    if head[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        checkpoint = read_checkpoint(path)
        check_tensors(checkpoint)
        checkpoint = replace(checkpoint, metadata=replace(checkpoint.metadata, name=name or checkpoint.metadata.name))
    elif head[:8] == _HDF5_SIGNATURE:
        checkpoint = _read_keras(path, name or path.stem, bn_epsilon, entry, origin or path.name)
    elif not head:
        raise WeightsError(f"{path}: is empty; copy or download it again")
    elif head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path}: is a web page, not weights; open its address in a browser and confirm the download there")
    else:
        raise WeightsError(f"{path}: is neither a Keras HDF5 nor a safetensors file")
    return checkpoint


def check_identity(path: Path, metadata: Metadata, entry: Entry, *, remedy: str = "") -> None:
    """Raise WeightsError where something tells that these are other weights than the registry's of that name.

    The published file is a Keras file without a word on dropout, so what drunet has trained is not made from it.
    """
    if metadata.base_width != entry.base_width:
        reason = f"base width {metadata.base_width}, not {entry.base_width}"
    elif not metadata.source_sha256 or metadata.dropout != entry.dropout:
        reason = f"their origin is {metadata.origin or 'not recorded'}"
    elif entry.source_sha256 not in (None, metadata.source_sha256):
        reason = f"SHA-256 of the source {metadata.source_sha256}, not {entry.source_sha256}"
    else:
        return
    raise WeightsError(
        f"{path}: holds other weights than {entry.name}, {entry.summary}: {reason}" + (f"; {remedy}" if remedy else "")
    )


def _read_keras(path: Path, name: str, bn_epsilon: float, entry: Entry | None, origin: str) -> Checkpoint:
    from drunet_cli.weights.keras_h5 import read_keras_h5  # h5py

    base_width, state = read_keras_h5(path)
    sha256 = file_sha256(path)
    metadata = Metadata(
        name=name,
        base_width=base_width,
        bn_epsilon=bn_epsilon,
        dropout=entry.dropout if entry else None,
        origin=origin,
        source_sha256=sha256,
        licence=entry.licence if entry else "",
        citation=entry.citation if entry else PAPER,
    )
    return Checkpoint(metadata=metadata, state=state, sha256=sha256)
