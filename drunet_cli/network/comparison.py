"""Whether an exported network answers as PyTorch does: the slices that both are asked, and how far apart the answers are."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from drunet_cli.brats import CHANNELS
from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.host import granted_cpus
from drunet_cli.io.slices import normalise
from drunet_cli.network.torch_engine import build_model, is_out_of_memory
from drunet_cli.phantom.scanner import make_phantom
from drunet_cli.weights.checkpoint import Checkpoint

Images: TypeAlias = npt.NDArray[np.float32]  # [N, 4, X, Y], 0 to 1
Answers: TypeAlias = Sequence[npt.NDArray[Any]]  # of each batch of images

NO_MEMORY: Final = "device cpu: memory does not suffice to compare the file with the weights"
_FRAME: Final = 240
_WINDOW: Final = (144, 176)  # another legal size; the phantom's brain is made smaller until it fits
_DEPTH: Final = 93


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What PyTorch answers in float32, and the largest magnitudes of its logits and of any map on the way to them."""

    logits: list[npt.NDArray[np.float32]]  # each [N, 4, X, Y]
    largest_logit: float
    largest_activation: float

    def logit_difference(self, logits: Answers) -> float:
        """The largest difference of a logit, as a share of the largest logit."""
        return _largest_difference(logits, self.logits) / self.largest_logit

    def probability_difference(self, probabilities: Answers) -> float:
        """The largest difference of a probability."""
        exponentials = [np.exp(logits - logits.max(axis=1, keepdims=True)) for logits in self.logits]
        return _largest_difference(probabilities, [array / array.sum(axis=1, keepdims=True) for array in exponentials])

    def class_difference(self, classes: Answers) -> float:
        """How far apart the two best logits lie at most where the class differs, as a share of the largest logit."""
        gap = 0.0
        for answer, logits in zip(classes, self.logits, strict=True):
            second, best = np.moveaxis(np.partition(logits, -2, axis=1)[:, -2:], 1, 0)
            gap = max(gap, float((best - second).max(where=answer != logits.argmax(axis=1), initial=0)))
        return gap / self.largest_logit


@functools.cache
def comparison_images() -> list[Images]:
    """Slices of a synthetic case with tumour, and a blank one: two of 240 x 240 in one batch, one of 144 x 176 alone."""
    phantom = make_phantom(0, shape=(*_WINDOW, _DEPTH))
    volume = np.stack([normalise(phantom.images[modality]) for modality in CHANNELS])
    most_tumour = int((phantom.class_map > 0).sum(axis=(0, 1)).argmax())
    margins = [((_FRAME - size) // 2,) * 2 for size in _WINDOW]
    frame = np.pad(volume[..., _DEPTH // 2], [(0, 0), *margins])
    batches = (np.stack([frame, np.zeros_like(frame)]), volume[None, ..., most_tumour])
    return [np.ascontiguousarray(batch, dtype=np.float32) / np.float32(255) for batch in batches]


def reference_of(checkpoint: Checkpoint, batches: Sequence[Images]) -> Reference:
    """Ask PyTorch. Raises WeightsError when the answer is not finite, DeviceError when memory does not suffice."""
    torch.set_num_threads(granted_cpus())
    model = build_model(checkpoint)
    largest = 0.0

    def watch(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, float(output.abs().max()))

    for module in model.modules():
        module.register_forward_hook(watch)
    try:
        with torch.inference_mode():
            logits = [np.asarray(model(torch.from_numpy(batch)).numpy()) for batch in batches]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(NO_MEMORY) from error
    if not all(np.isfinite(array).all() for array in logits):
        raise WeightsError(f"weights {checkpoint.metadata.name}: the network's output is not finite; they are damaged")
    largest_logit = max(float(np.abs(array).max()) for array in logits)
    # 1: of a network that answers 0 everywhere there is no share.
    return Reference(logits=logits, largest_logit=largest_logit or 1.0, largest_activation=largest)


def _largest_difference(answers: Answers, references: Answers) -> float:
    return max(float(np.abs(answer - reference).max()) for answer, reference in zip(answers, references, strict=True))
