"""What several test modules need: the golden files, and how the command line is told of four images."""

import io
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, Modality
from tests.forks import Done

# Where the voxel axes of an image may point, towards R or L, A or P, S or I: 48.
AXCODES: Final = tuple(
    "".join(codes)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*axes)
)  # fmt: skip
GOLDEN: Final = Path(__file__).parent / "golden"
GOLDEN_WEIGHTS: Final = GOLDEN / "keras_base1.h5"
GOLDEN_IMAGES: Final = {modality: GOLDEN / "case" / f"golden_{modality}.nii.gz" for modality in CHANNELS}
GOLDEN_LABELS: Final = GOLDEN / "case" / "golden_seg_expected.nii.gz"

ENDED_PID: Final = 999_999_999  # no process has it

Drunet = Callable[..., Done]


def image_options(images: Mapping[Modality, Path] = GOLDEN_IMAGES) -> list[str]:
    """The four options of `drunet segment`."""
    return [word for modality, path in images.items() for word in (f"--{modality}", str(path))]


def stdin_of(content: str | bytes) -> io.TextIOWrapper:
    """A stdin that holds these bytes, or this text in UTF-8."""
    return io.TextIOWrapper(io.BytesIO(content.encode() if isinstance(content, str) else content))


def open_image(path: Path | str) -> Any:  # nibabel types what it opens too vaguely to be used
    """A NIfTI image as nibabel reads it."""
    return nib.load(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names_in(folder: Path | str) -> list[str]:
    """What lies in a folder itself."""
    return sorted(path.name for path in Path(folder).iterdir())


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


def golden_logits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """One golden slice as the network takes it, and the logits that Keras gave for it; both [1, 4, X, Y]."""
    keras = np.load(GOLDEN / "logits.npz")
    index = int(keras["slice_index"])
    slices = np.load(GOLDEN / "slices.npz")["slices"][index : index + 1]
    images = np.ascontiguousarray(slices.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
    return images, np.ascontiguousarray(keras["logits"].transpose(0, 3, 1, 2))


def wait_until(happened: Callable[[], bool], what: str = "nothing has happened", *, patience_s: float = 60) -> None:
    """Wait for another thread or process. what: why it is in vain after a minute."""
    end = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def voxels_of(path: Path | str) -> npt.NDArray[Any]:
    """The voxels of a NIfTI image, in the type of the file."""
    return np.asarray(open_image(path).dataobj)


def touch(path: Path) -> None:
    """Another time of change, the same content."""
    stamp = path.stat()
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
