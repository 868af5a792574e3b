"""Weights by name or file: from the package, from the cache, by a download into the cache."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from drunet_cli.errors import MisuseError, OutputError, WeightsError, one_line
from drunet_cli.io.atomic import check_writable, remove_stale
from drunet_cli.io.volumes import file_sha256
from drunet_cli.weights.checkpoint import Checkpoint, Metadata, check_tensors, read_checkpoint, read_metadata, write_checkpoint
from drunet_cli.weights.download import exclusive, fetch, shown_url
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
    find_entry,
    is_file,
    is_file_name,
    other_ways,
    shown_source,
    source_url,
    weights_path,
)

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
    from drunet_cli.weights.keras import read_keras_h5  # h5py

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


_LOG: Final = logging.getLogger("drunet_cli")


class Watcher:
    """Told how a download goes; does nothing with it. The command line draws it in a class of its own."""

    def announce_download(self, entry: Entry, url: str, cache: Path) -> None:
        """A download is about to begin."""

    def downloaded(self, n_bytes: int, n_total: int | None) -> None:
        """So many bytes have arrived, of so many if that is known."""

    def retrying(self, reason: str, delay_s: float) -> None:
        """An attempt failed; another follows after so many seconds."""

    def importing(self, path: Path) -> None:
        """The file is complete and is now verified and converted."""

    def waiting_for_other(self, name: str) -> None:
        """Another process is fetching the same weights."""


class LoggingWatcher(Watcher):
    """Tells the logger "drunet_cli" why a program waits: as warnings, which Python shows where nothing else is configured."""

    def announce_download(self, entry: Entry, url: str, cache: Path) -> None:
        """Size, source, folder and licence."""
        _LOG.warning("downloading weights %s, about %d MB, from %s into %s", entry.name, entry.megabytes, url, cache)
        _LOG.warning("licence of %s: %s", entry.name, entry.licence)

    def retrying(self, reason: str, delay_s: float) -> None:
        """Why it takes longer."""
        _LOG.warning("download: %s; trying again in %.0f s", reason, delay_s)

    def waiting_for_other(self, name: str) -> None:
        """Why nothing happens."""
        _LOG.warning("another process is downloading the weights %s: waiting for it", name)


_ABANDONED_AFTER_S: Final = 24 * 3600.0


_LOGGED: Final = LoggingWatcher()


def open_weights(weights: str, *, watcher: Watcher = _LOGGED) -> Checkpoint:
    """Weights by name or file, from the package or the cache, fetched into the cache where not there. Raises WeightsError."""
    check_available(weights)
    if is_file_name(weights):
        return read_source(Path(weights), bn_epsilon=PUBLISHED_BN_EPSILON)
    path = obtain(weights, watcher=watcher)
    with _kept(weights):
        checkpoint = read_checkpoint(path)
        check_tensors(checkpoint)
        return checkpoint


def obtain(name: str, *, watcher: Watcher = _LOGGED) -> Path:
    """The file of these weights in the package or the cache, downloaded and imported first if it is not there.

    One process downloads, others wait for it. Raises WeightsError, whose details are the other ways to get or do without them.
    """
    target = weights_path(name)
    if name in BUNDLED or is_file(target):
        with _kept(name):
            _check_kept(name, target)
        return target
    check_available(name)
    entry = find_entry(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(target.with_suffix(".lock"), on_wait=lambda: watcher.waiting_for_other(name)) as locked:
            if not is_file(target):
                _download(entry, source_url(entry), target, watcher, locked=locked)
    except (WeightsError, OutputError) as error:
        raise WeightsError(f"download of weights {name} failed: {error}", details=other_ways(entry)) from error
    except OSError as error:
        reason = f"the cache {target.parent} cannot be written: {error.strerror or error}; set DRUNET_CACHE_DIR to another"
        raise WeightsError(f"download of weights {name} failed: {reason}", details=other_ways(entry)) from error
    return target


def _check_kept(name: str, file: Path) -> Metadata:
    """Metadata of a file in the package or the cache, after a look whether it is what its name says."""
    metadata = read_metadata(file)
    if name in ENTRIES:
        check_identity(file, metadata, ENTRIES[name])
    return metadata


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
        target = cached_path(name)
    except WeightsError as error:
        raise MisuseError(f"--name: {error}") from error
    if is_file(target) and not overwrite:
        raise OutputError(f"{target}: weights {name} are in the cache already; give --overwrite to replace them")
    check_file(path)
    try:
        check_writable(target, overwrite=overwrite)
    except OutputError as error:
        raise OutputError(f"{error}; set DRUNET_CACHE_DIR to another cache folder") from error
    entry = ENTRIES.get(name)
    checkpoint = read_source(path, name=name, bn_epsilon=bn_epsilon or PUBLISHED_BN_EPSILON, entry=entry)
    if entry is not None:
        check_identity(path, checkpoint.metadata, entry, remedy="give them a name of their own by --name NAME")
    recorded = checkpoint.metadata.bn_epsilon
    if bn_epsilon not in (None, recorded):
        raise MisuseError(f"--epsilon {bn_epsilon:g}: {path} records {recorded:g}; leave the option out")
    write_checkpoint(target, checkpoint.state, checkpoint.metadata, overwrite=overwrite)
    return target


def metadata_of(weights: str) -> tuple[Path, Metadata]:
    """File and metadata of weights by name or file; nothing is downloaded. Raises WeightsError."""
    if is_file_name(weights):
        check_available(weights)
        return Path(weights), open_weights(weights).metadata
    path = weights_path(weights)
    if weights not in BUNDLED and not is_file(path):
        check_available(weights)
        remedy = f"run: drunet weights download {weights}, or without internet: drunet weights import FILE --name {weights}"
        raise WeightsError(f"weights {weights} are not in the cache; {remedy}")
    with _kept(weights):
        return path, _check_kept(weights, path)


@contextmanager
def _kept(name: str) -> Iterator[None]:
    """Add to what is wrong with a file in the package or the cache how to replace it."""
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


def _download(entry: Entry, url: str, target: Path, watcher: Watcher, *, locked: bool) -> None:
    source = target.with_suffix(".h5")
    watcher.announce_download(entry, shown_source(entry), target.parent)
    with _part(source, locked=locked) as part:
        resumed = part.exists()
        _fetch(entry, url, part, watcher)
        try:
            _import_part(entry, part, url, target, watcher)
        except WeightsError:
            part.unlink()  # complete and wrong: nothing to resume
            if not resumed:
                raise
            # What an earlier run had left was perhaps of another file.
            _fetch(entry, url, part, watcher)
            _import_part(entry, part, url, target, watcher)


def _fetch(entry: Entry, url: str, part: Path, watcher: Watcher) -> None:
    """A mirror's URL is told with what went wrong; the authors' is not, as what to do instead names their page."""
    try:
        fetch(url, part, on_progress=watcher.downloaded, on_retry=watcher.retrying)
    except WeightsError as error:
        raise WeightsError(str(error).removeprefix(f"{shown_url(entry.url)}: ")) from error


def _import_part(entry: Entry, part: Path, url: str, target: Path, watcher: Watcher) -> None:
    watcher.importing(part)
    try:
        checkpoint = read_source(part, name=entry.name, bn_epsilon=entry.bn_epsilon, entry=entry, origin=shown_url(url))
        check_identity(part, checkpoint.metadata, entry)
    except WeightsError as error:  # the part goes, so it is not named
        arrived = "what arrived" if url == entry.url else shown_url(url)
        raise WeightsError(f"{arrived}: {str(error).removeprefix(f'{one_line(str(part))}: ')}") from error
    write_checkpoint(target, checkpoint.state, checkpoint.metadata, overwrite=True)
    part.unlink()


@contextmanager
def _part(source: Path, *, locked: bool) -> Iterator[Path]:
    """The file that a download grows in.

    Under the lock it bears the host's name and stays after a failure, to be resumed: some network file systems keep locks
    within one host only. Without a lock it bears the process id too, and goes.
    """
    remove_stale(source)
    host = socket.gethostname()
    if locked:
        part = source.with_name(f".{source.name}.{host}.part")
        yield part
        # Reached when the weights are there: what other hosts began, or this one under another name, is of no more use.
        for left in source.parent.glob(f".{source.name}.*.part"):
            with suppress(OSError):
                if left == part or time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
                    left.unlink()
        return
    part = source.with_name(f".{source.name}.{host}.{os.getpid()}.tmp")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
