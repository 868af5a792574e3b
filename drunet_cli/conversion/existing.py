"""What is there of a case that was converted before: complete, lost in part, or changed by somebody."""

import stat
import zlib
from pathlib import Path
from typing import Final

from drunet_cli.conversion.description import Description, read_description
from drunet_cli.conversion.layout import Layout, slice_name
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.geometry import FRAME
from drunet_cli.io.inputs import changed_files
from drunet_cli.io.png import DamagedPngError, decode_png

_CHANGED: Final = "has been changed since it was converted; give --overwrite to convert the case again"


def finished_description(path: Path) -> Description | None:
    """The description, if there is one. An empty one is what a machine that lost its power may leave."""
    try:
        return read_description(path) if path.stat().st_size else None
    except OSError:  # absent; what cannot be read cannot be written either, which is told then
        return None
    except CaseError as error:
        raise OutputError(f"{error}; give --overwrite") from error


def check_made_of(path: Path, finished: Description, case: Case, *, skip_blank: bool) -> None:
    """Raise OutputError where the existing slices, whose description lies at path, are those of other files or settings."""
    remedy = "give --overwrite to convert it again"
    files = case.files
    if finished.skip_blank != skip_blank:
        raise OutputError(f"{path}: was converted {'with' if finished.skip_blank else 'without'} --skip-blank; {remedy}")
    if set(files) != set(finished.inputs):
        raise OutputError(f"{path}: was converted {'with' if finished.has_masks else 'without'} a segmentation; {remedy}")
    for file in changed_files(finished.inputs, files):
        raise OutputError(f"{file}: is not the file from which {path} was converted; {remedy}")


def slices_are_there(finished: Description, layout: Layout) -> bool:
    """Whether every slice is as it was written; False where some are missing or damaged, and none has been changed.

    Raises OutputError for one that somebody has changed: it is not ours to replace.
    """
    complete = True
    for row in finished.rows:
        expected = [(layout.images, row.image_crc), *([(layout.masks, row.mask_crc)] if finished.has_masks else [])]
        for folder, crc in expected:
            path = folder / slice_name(finished.case, row.z)
            try:
                if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe need never end
                    raise OutputError(f"{path}: {_CHANGED}")
                content = path.read_bytes()
            except FileNotFoundError:
                complete = False
                continue
            except OSError as error:
                raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
            if zlib.crc32(content) == crc:
                continue
            try:
                decode_png(content, (FRAME, FRAME))
            except DamagedPngError:  # what a machine that lost its power may leave
                complete = False
                continue
            except CaseError as error:
                raise OutputError(f"{path}: {error}: {_CHANGED}") from error
            raise OutputError(f"{path}: {_CHANGED}")
    return complete
