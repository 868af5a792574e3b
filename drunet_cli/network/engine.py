"""What an engine is: axial uint8 slices in, class indices or probabilities out, numpy at both ends."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import ClassMap


class Precision(StrEnum):
    """Number format of the network's arithmetic. `auto` is float32, in which the labels equal the published code's."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Engine(Protocol):
    """Runs the network on any number of slices [N, X, Y, 4] (channels FLAIR, T1ce, T1, T2; 0-255, background 0).

    batch_size: the most slices that are computed at once; it shrinks when memory runs out.
    device, device_name: as the engine names it, and the hardware in words. threads: of the CPU.
    versions: of the software that computes.
    """

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

    def classes(self, slices: npt.NDArray[np.uint8]) -> ClassMap:
        """Most probable class [N, X, Y]."""
        ...

    def probabilities(self, slices: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4]."""
        ...
