"""What an engine is: axial uint8 slices in, class indices or probabilities out, numpy at both ends."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import ClassMap


class EngineName(StrEnum):
    """The software that computes. `auto` is ONNX Runtime on a CPU in float32, where it is installed, else PyTorch."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"


class Precision(StrEnum):
    """Number format of the network's arithmetic. `auto` is float32, in which the labels equal the published code's."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class WindowMode(StrEnum):
    """What the network sees of a slice: whole frames, or the smallest window that holds the brain.

    The metadata of weights say for which they were trained.
    """

    FULL = "full"
    AUTO = "auto"


def ignore_progress(_n_slices: int) -> None:
    """For who does not ask how far an engine has come."""


class Engine(Protocol):
    """Runs the network on any number of slices [N, X, Y, 4] (channels FLAIR, T1ce, T1, T2; 0-255, background 0).

    X and Y are multiples of 32 plus 16. on_done is told of slices as they are done, by their number since it was told last.
    name: torch or onnxruntime. batch_size: the most slices that are computed at once; it shrinks when memory runs out.
    device, device_name: as the engine names it, and the hardware in words. threads: of the CPU.
    versions: of the software that computes.
    """

    @property
    def name(self) -> EngineName: ...  # noqa: D102

    @property
    def batch_size(self) -> int: ...  # noqa: D102

    @property
    def device(self) -> str: ...  # noqa: D102

    @property
    def device_name(self) -> str: ...  # noqa: D102

    @property
    def threads(self) -> int: ...  # noqa: D102

    @property
    def versions(self) -> Mapping[str, str]: ...  # noqa: D102

    @property
    def precision(self) -> Precision: ...  # noqa: D102

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        """Most probable class [N, X, Y]."""
        ...

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4].

        dropout_seeds: one a slice, of a sample with dropout on, which depends on nothing else; for an engine that was opened
        with a dropout rate.
        """
        ...
