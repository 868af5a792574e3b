"""`drunet train` towards what other networks say, beside the labels.

    python -m tests.benchmarks.distil TEACHER,TEACHER,... train CASES -o RUN --init STUDENT --config distil.toml ...

The cross-entropy is that to the mean probabilities of the teachers, which see the same images; the Dice is that with half of
these probabilities and half of the labels. The recipe of the README's row: base width 4, dropout 0.2, 300 steps, learning rate
0.0005, flip_y 0.5, average decay 0.99.
"""

import sys

import torch
from torch import Tensor
from torch.nn import functional

from drunet_cli.__main__ import run
from drunet_cli.brats import N_CLASSES
from drunet_cli.network.torch_engine import build_model
from drunet_cli.training.learner import Learner, soft_dice
from drunet_cli.weights.cache import open_weights

if __name__ == "__main__":
    teachers = [build_model(open_weights(path)).eval().requires_grad_(False) for path in sys.argv.pop(1).split(",")]

    def loss(learner: Learner, images: Tensor, classes: Tensor) -> Tensor:
        images = images.contiguous(memory_format=learner.memory_format)
        with torch.no_grad():
            taught = torch.stack([teacher(images).float().softmax(dim=1) for teacher in teachers]).mean(dim=0)
        log_probabilities = functional.log_softmax(learner.forward(images).float(), dim=1)
        truth = functional.one_hot(classes, N_CLASSES).movedim(3, 1).to(log_probabilities.dtype)
        cross_entropy = -(log_probabilities * taught).sum(dim=1).mean()
        return cross_entropy + 1 - soft_dice(log_probabilities.exp(), (taught + truth) / 2).mean()

    Learner.loss = loss  # type: ignore[assignment, method-assign]
    run()
