"""The previews that lie beside label maps, small enough for a page of many cases."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drunet_cli.errors import CaseError
from drunet_cli.io.naming import stem
from drunet_cli.io.png import encode_webp
from drunet_cli.report.runs import Record, collapsed
from drunet_cli.segmentation.summary import Status

# Pixels. A preview of 1496 pixels takes about 460 kB; so wide as WebP 50 kB, 15 kB when narrow (on synthetic cases). A page of
# 200 cases thus has some 13 MB and can be sent by mail; with 1251, as BraTS 2021 has, 25 MB.
_WIDE: Final = 960
_NARROW: Final = 480
_MOST_WIDE: Final = 250
_LARGEST_BYTES: Final = 2**23


@dataclass(frozen=True)
class Thumbnail:
    """path: of the preview itself. webp: the picture, made smaller, of so many pixels."""

    path: Path
    webp: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Thumbnails:
    """by_label_map: of the cases that have one, by the row's output. notices: why others cannot be shown, one line each."""

    by_label_map: dict[str, Thumbnail]
    notices: tuple[str, ...] = ()


def read_thumbnails(records: Sequence[Record], *, n_threads: int, on_done: Callable[[], None] = lambda: None) -> Thumbnails:
    """Read every preview that there is. on_done: called once a record."""
    label_maps = [Path(record.row.output) for record in records if record.row.status is not Status.FAILED and _may_have(record)]
    previews = [label_map.with_name(f"{stem(label_map)}_preview.png") for label_map in label_maps]
    width = _WIDE if len(records) <= _MOST_WIDE else _NARROW
    by_label_map, unshown = {}, []
    threads = ThreadPoolExecutor(n_threads)
    try:
        read = threads.map(lambda path: _read(path, width), previews)
        for label_map, preview, found in zip(label_maps, previews, read, strict=True):
            on_done()
            if isinstance(found, Thumbnail):
                by_label_map[str(label_map)] = found
            elif found is not None:
                unshown.append((str(preview), f"{found}; not shown"))
    finally:
        threads.shutdown(cancel_futures=True)
    return Thumbnails(by_label_map, tuple(collapsed(unshown)))


def _may_have(record: Record) -> bool:
    """Whether its sidecar names a preview; a picture that it does not name may be of another label map."""
    files = (record.document or {}).get("files")
    return files is None or any(str(name).endswith("_preview.png") for name in files)


def _read(path: Path, width: int) -> Thumbnail | CaseError | None:
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            return CaseError("is larger than any preview")
        return Thumbnail(path, *encode_webp(content, width=width))
    except FileNotFoundError:
        return None
    except OSError as error:
        return CaseError(f"cannot be read: {error.strerror}")
    except CaseError as error:
        return error
