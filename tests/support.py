"""What several test modules need: the golden files, and how the command line is told of four images."""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final

import nibabel as nib

from drunet_cli.brats import CHANNELS, Modality

GOLDEN: Final = Path(__file__).parent / "golden"
GOLDEN_WEIGHTS: Final = GOLDEN / "keras_base1.h5"
GOLDEN_IMAGES: Final = {modality: GOLDEN / "case" / f"golden_{modality}.nii.gz" for modality in CHANNELS}
GOLDEN_LABELS: Final = GOLDEN / "case" / "golden_seg_expected.nii.gz"

Drunet = Callable[..., CompletedProcess[str]]


def image_options(images: Mapping[Modality, Path] = GOLDEN_IMAGES) -> list[str]:
    """The four options of `drunet segment`."""
    return [word for modality, path in images.items() for word in (f"--{modality}", str(path))]


def stdin_of(content: str | bytes) -> io.TextIOWrapper:
    """A stdin that holds these bytes, or this text in UTF-8."""
    return io.TextIOWrapper(io.BytesIO(content.encode() if isinstance(content, str) else content))


def open_image(path: Path | str) -> Any:  # nibabel types what it opens too vaguely to be used
    """A NIfTI image as nibabel reads it."""
    return nib.load(path)


def open_to_all(folder: Path) -> None:
    """Let other users enter a folder of a test, and those above it, which pytest keeps to its own."""
    for path in (folder, *folder.parents):
        if not path.stat().st_mode & 0o001:
            path.chmod(0o755)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who is not root, whom permissions do not bind."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
