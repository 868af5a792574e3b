"""Weights by name or file: from the package, from the cache, or by a download into the cache.

The cache holds `weights/NAME.safetensors`, put there by a rename of a complete and verified file: whoever finds that name may
use it, without a lock, also where the cache is read-only.
"""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from drunet_cli.errors import MisuseError, OutputError, WeightsError, one_line
from drunet_cli.io.atomic import check_writable, take_turns, waiting_for
from drunet_cli.io.inputs import sha256_of, stand_in
from drunet_cli.weights.checkpoint import (
    Checkpoint,
    Metadata,
    check_tensors,
    read_checkpoint,
    read_metadata,
    write_checkpoint,
)
from drunet_cli.weights.download import ByteProgress, Note, discard_part, fetch, shown_url
from drunet_cli.weights.registry import (
    BUNDLED,
    DEFAULT,
    ENTRIES,
    PAPER,
    PUBLISHED_BN_EPSILON,
    Entry,
    cached_path,
    check_available,
    check_file,
    check_name,
    find_entry,
    is_file,
    is_file_name,
    other_ways,
    shown_source,
    source_url,
    weights_path,
)

_HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_ABANDONED_AFTER_S: Final = 24 * 3600.0


def log_note(note: str) -> None:
    """Tell the logger "drunet_cli" why a program waits: as a warning, which Python shows where nothing else is configured."""
    logging.getLogger("drunet_cli").warning("%s", note)


def ignore_progress(_n_bytes: int, _n_total: int | None) -> None:
    """Stand in for a callback where nobody asks how far a download has come."""


def open_weights(weights: str, *, on_progress: ByteProgress = ignore_progress, on_note: Note = log_note) -> Checkpoint:
    """Open weights by name or file; download them into the cache first if a name is not there.

    on_progress: called with the bytes that have arrived, and their number in all or None. on_note: called with a
    message on a download, of one line or several. Raises WeightsError.
    """
    check_available(weights)
    if is_file_name(weights):
        return read_weights_file(Path(weights), bn_epsilon=PUBLISHED_BN_EPSILON)
    path = obtain(weights, on_progress=on_progress, on_note=on_note)
    with _name_remedy(weights):
        checkpoint = read_checkpoint(path)
        if weights not in BUNDLED:
            check_tensors(checkpoint)
            return checkpoint
    try:
        check_tensors(checkpoint)
    except WeightsError as error:
        raise WeightsError(f"{error}; weights/structure.py describes another network than the published one") from error
    return checkpoint


def obtain(name: str, *, on_progress: ByteProgress = ignore_progress, on_note: Note = log_note) -> Path:
    """Return the file of these weights in the package or the cache, downloaded and verified first if it is not there.

    One process downloads, others wait for it. Raises WeightsError, whose details are the other ways to get or do without them.
    """
    target = weights_path(name)
    if name in BUNDLED or is_file(target):
        with _name_remedy(name):
            _read_known_metadata(name, target)
        return target
    check_available(name)
    entry = find_entry(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The claim spares work and guards no result: the file appears by a rename, whoever has fetched it.
        with take_turns(target, on_wait=lambda: on_note(f"Weights {name}: {waiting_for(target, 'downloading them')}")):
            if not is_file(target):
                _download(entry, target, on_progress, on_note)
    except (WeightsError, OutputError) as error:
        raise WeightsError(f"download of weights {name} failed: {error}", details=other_ways(entry)) from error
    except OSError as error:
        reason = f"the cache {target.parent} cannot be written: {error.strerror or error}; set DRUNET_CACHE_DIR to another"
        raise WeightsError(f"download of weights {name} failed: {reason}", details=other_ways(entry)) from error
    return target


def metadata_of(weights: str) -> tuple[Path, Metadata]:
    """File and metadata of weights by name or file; nothing is downloaded. Raises WeightsError.

    Only the header of a .safetensors file is read: its tensors are not looked at.
    """
    if is_file_name(weights):
        check_available(weights)
        path = Path(weights)
        return path, read_metadata(path) if _is_safetensors(_head(path)) else open_weights(weights).metadata
    path = weights_path(weights)
    if weights not in BUNDLED and not is_file(path):
        check_available(weights)
        remedy = f"run: drunet weights download {weights}, or without internet: drunet weights import FILE --name {weights}"
        raise WeightsError(f"weights {weights} are not in the cache; {remedy}")
    with _name_remedy(weights):
        return path, _read_known_metadata(weights, path)


def import_weights(path: Path, *, name: str = DEFAULT, bn_epsilon: float | None = None, overwrite: bool = False) -> Path:
    """Verify a Keras .h5 or a drunet .safetensors file and put it into the cache under a name.

    bn_epsilon: to run a Keras file with, by default as published; a .safetensors file has its own.
    Raises WeightsError when the file is not this network's, or not what the registry expects under that name; OutputError
    when the name is taken and `overwrite` is not set, or the cache cannot be written; MisuseError for the name of bundled
    weights or an illegal one, or an epsilon that does not apply.
    """
    if name in BUNDLED:
        raise MisuseError(f"weights {name} come with drunet and are not replaced; give yours another --name")
    try:
        check_name(name)
    except WeightsError as error:
        raise MisuseError(f"--name: {error}") from error
    target = cached_path(name)
    if is_file(target) and not overwrite:
        raise OutputError(f"{target}: weights {name} are in the cache already; give --overwrite to replace them")
    check_file(path)
    try:
        check_writable(target, overwrite=overwrite)
    except OutputError as error:
        raise OutputError(f"{error}; set DRUNET_CACHE_DIR to another cache folder") from error
    entry = ENTRIES.get(name)
    checkpoint = read_weights_file(path, name=name, bn_epsilon=bn_epsilon or PUBLISHED_BN_EPSILON, entry=entry)
    if entry is not None:
        _check_identity(path, checkpoint.metadata, entry, remedy="give them a name of their own by --name NAME")
    recorded = checkpoint.metadata.bn_epsilon
    if bn_epsilon not in (None, recorded):
        raise MisuseError(f"--epsilon {bn_epsilon:g}: {path} records {recorded:g}; leave the option out")
    write_checkpoint(target, checkpoint.state, checkpoint.metadata, overwrite=overwrite)
    return target


def read_weights_file(
    path: Path, *, name: str | None = None, bn_epsilon: float, entry: Entry | None = None, origin: str = ""
) -> Checkpoint:
    """Read weights from a Keras HDF5 file, or from a drunet .safetensors file, which describes itself.

    The content decides which, not the suffix. name: what the weights are called from now on; without it the recorded name, or
    the file's. bn_epsilon: for Keras files, which do not record it. entry: whose licence and citation a Keras file has. Raises
    WeightsError unless every tensor of the network is there once, of its shape, and finite.
    """
    head = _head(path)
    if _is_safetensors(head):
        checkpoint = read_checkpoint(path)
        try:
            check_tensors(checkpoint)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        return replace(checkpoint, metadata=replace(checkpoint.metadata, name=name or checkpoint.metadata.name))
    if head[:8] == _HDF5_SIGNATURE:
        return _read_keras(path, name or path.stem, bn_epsilon, entry, origin or path.name)
    if not head:
        raise WeightsError(f"{path}: is empty; copy or download it again")
    if found := stand_in(head):
        raise WeightsError(f"{path}: {found}")
    raise WeightsError(f"{path}: is neither a Keras HDF5 nor a safetensors file")


def _head(path: Path) -> bytes:
    """The first bytes of a file."""
    try:
        with path.open("rb") as stream:
            return stream.read(200)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{"  # eight bytes of length, then JSON


def _read_keras(path: Path, name: str, bn_epsilon: float, entry: Entry | None, origin: str) -> Checkpoint:
    from drunet_cli.weights.keras import read_keras_h5  # h5py

    base_width, state = read_keras_h5(path)
    sha256 = sha256_of(path, error=WeightsError)
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


def _read_known_metadata(name: str, file: Path) -> Metadata:
    """Read the metadata of a file in the package or the cache, and check that it holds what its name says."""
    metadata = read_metadata(file)
    if name in ENTRIES:
        _check_identity(file, metadata, ENTRIES[name])
    return metadata


def _check_identity(path: Path, metadata: Metadata, entry: Entry, *, remedy: str = "") -> None:
    """Raise WeightsError where these are recognisably other weights than the registry's of that name.

    The published file is a Keras file that does not tell its dropout; weights that drunet has trained are not made from it.
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


@contextmanager
def _name_remedy(name: str) -> Iterator[None]:
    """Add to an error about a file in the package or the cache how to replace that file."""
    details: tuple[str, ...] = ()
    try:
        yield
    except WeightsError as error:
        if name in BUNDLED:
            remedy = "it is a part of drunet, whose installation is damaged: install drunet-cli again"
        elif name in ENTRIES:
            remedy = f"delete that file and run: drunet weights download {name}"
            details = other_ways(ENTRIES[name])
        else:
            remedy = f"import it again: drunet weights import FILE --name {name} --overwrite"
        raise WeightsError(f"{error}; {remedy}", details=details) from error


def _download(entry: Entry, target: Path, on_progress: ByteProgress, on_note: Note) -> None:
    """Download weights and put them into the cache. The next download goes on from what a failed one left."""
    url, source = source_url(entry), target.with_suffix(".h5")
    on_note(
        f"Weights {entry.name} are not in the cache: downloading about {entry.megabytes} MB\n"
        f"  from {shown_source(entry)}\n  into {target.parent}\n  licence: {entry.licence}"
    )
    # With the host's name, as a claim tells little of a process on another host.
    part = source.with_name(f".{source.name}.{socket.gethostname()}.part")
    try:
        fetch(url, part, on_progress=on_progress, on_note=on_note)
    except WeightsError as error:  # a mirror is named, but not the authors' URL, as the other ways name their page
        raise WeightsError(str(error).removeprefix(f"{shown_url(entry.url)}: ")) from error
    try:
        _import_part(entry, part, url, target, on_note)
    except WeightsError:
        discard_part(part)  # complete and wrong: there is nothing to go on from
        raise
    discard_part(part)
    for left in source.parent.glob(f".{source.name}.*.part*"):  # what other hosts began is of no more use
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                left.unlink()


def _import_part(entry: Entry, part: Path, url: str, target: Path, on_note: Note) -> None:
    on_note(f"Verifying and converting {part.stat().st_size / 1e6:.0f} MB")
    try:
        checkpoint = read_weights_file(part, name=entry.name, bn_epsilon=entry.bn_epsilon, entry=entry, origin=shown_url(url))
        _check_identity(part, checkpoint.metadata, entry)
    except WeightsError as error:  # the part goes, so it is not named
        arrived = "what arrived" if url == entry.url else shown_url(url)
        raise WeightsError(f"{arrived}: {str(error).removeprefix(f'{one_line(str(part))}: ')}") from error
    write_checkpoint(target, checkpoint.state, checkpoint.metadata, overwrite=True)
