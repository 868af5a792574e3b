"""A file of this machine, or of a file system that it has mounted, in place of a download."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from drunet_cli.errors import WeightsError

_COPY_BLOCK_BYTES = 1024 * 1024


def copy_file_url(url: str, part: Path, *, shown: str, on_progress: Callable[[int, int | None], None]) -> None:
    """Copy a file:// URL into the part. shown: the URL, as a message begins. Raises WeightsError, OSError for the part."""
    host, path = urlsplit(url)[1:3]
    source = Path(unquote(path))
    if host not in ("", "localhost") or not source.is_absolute() or "\0" in str(source):
        raise WeightsError(f"{shown}: not a valid file URL, which is file:// and an absolute path of this machine")
    try:
        total = source.stat().st_size
        if not source.is_file():  # a pipe or a device may never end
            raise WeightsError(f"{shown}: not a file")
    except OSError as error:
        raise WeightsError(f"{shown}: {error.strerror}") from error
    copied = 0
    with part.open("wb") as stream:
        for block in _file_blocks(source, shown):
            stream.write(block)
            copied += len(block)
            on_progress(copied, total)


def _file_blocks(source: Path, shown: str) -> Iterator[bytes]:
    # A generator of its own, so that only errors of reading are caught here, not those of writing the part.
    try:
        with source.open("rb") as stream:
            while block := stream.read(_COPY_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise WeightsError(f"{shown}: {error.strerror}") from error
