"""Everything that a step changes: the network, its optimiser, and the running average of the weights; and the loss."""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from drunet_cli.brats import N_CLASSES, REGIONS
from drunet_cli.network.engine import Precision
from drunet_cli.network.model import DRUNet104
from drunet_cli.network.torch_engine import check_model
from drunet_cli.training.batches import BatchPlan, draw_variation, vary
from drunet_cli.training.recipe import (
    Decay,
    LossSettings,
    NetworkSettings,
    Optimiser,
    OptimiserSettings,
    Recipe,
    Stream,
    generator,
)
from drunet_cli.weights.structure import Start, starts

_SMOOTH: Final = 1.0  # pixel: defines the Dice of an empty region
_DTYPES: Final = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}
# At first the average follows the weights closely: after n steps it is a mean over about the last n / 9 of them.
_AVERAGE_START: Final = 10
# On the CPU, the backward pass of a strided 1x1 convolution in channels-last order overruns its memory when the convolution has
# fewer than 16 input channels (torch 2.13); the first one of the network has four times the base width.
_NARROWEST_CHANNELS_LAST: Final = 4
# Keras draws "he_normal" from a normal distribution that is cut at two SD, and widens it to keep the SD of He's formula.
_CUT_AT_SD: Final = 2.0
_SD_OF_CUT_NORMAL: Final = 0.87962566103423978


class Learner:
    """A network in training on one device.

    n_steps: number of steps of the whole training, for the learning rate. precision: float32, bfloat16, or float16 with scaling
    of the loss. part: the slices of each batch that this process takes.
    forward: the network, or its DistributedDataParallel. averages: running averages of parameters and batch-norm statistics.
    """

    def __init__(
        self,
        network: DRUNet104,
        recipe: Recipe,
        *,
        n_steps: int,
        device: torch.device,
        precision: Precision = Precision.FLOAT32,
        part: slice = slice(None),
    ) -> None:
        narrow = recipe.network.base_width < _NARROWEST_CHANNELS_LAST
        usual_order = device.type == "mps" or (device.type == "cpu" and narrow)
        self.memory_format = torch.contiguous_format if usual_order else torch.channels_last
        self.network = network.to(device=device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.forward: nn.Module = self.network  # DistributedDataParallel takes its place
        self.recipe, self.n_steps, self.device, self.part = recipe, n_steps, device, part
        self._dtype = _DTYPES.get(precision)
        self.optimiser = _optimiser(self.network, recipe.optimiser, fused=device.type == "cuda")
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision is Precision.FLOAT16)
        tensors = self.network.state_dict(keep_vars=True)
        self._averaged = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
        self.averages = {name: tensor.clone() for name, tensor in self._averaged.items()}

    def step(self, pixels: Tensor, plan: BatchPlan) -> Tensor:
        """Learn from this process' part of a batch, [N, X, Y, 5] uint8 on the device; return the loss, a scalar."""
        recipe = self.recipe
        torch.manual_seed(self._seed(plan.step))  # for dropout and noise
        n = len(plan.windows)
        variation = draw_variation(recipe.augmentation, seed=recipe.seed, step=plan.step, n=n, shape=plan.shape)
        images, classes = vary(pixels, variation.part(self.part))
        self.network.train()
        loss = self.loss(images, classes)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._update(plan.step)
        return loss.detach()

    def loss(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of images [N, 4, X, Y] and classes [N, X, Y], a scalar."""
        with torch.autocast(self.device.type, dtype=self._dtype or torch.bfloat16, enabled=self._dtype is not None):
            logits = self.forward(images.contiguous(memory_format=self.memory_format))
        return loss_of(logits, classes, self.recipe.loss)

    def is_finite(self) -> bool:
        """Whether all weights are numbers. Waits for the device."""
        return bool(torch.stack([tensor.isfinite().all() for tensor in self._averaged.values()]).all())

    def _update(self, step: int) -> None:
        settings = self.recipe.optimiser
        rate = learning_rate(settings, step=step, n_steps=self.n_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if settings.clip_norm:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        decay = min(self.recipe.average.decay, (step + 1) / (step + _AVERAGE_START))
        if self.recipe.average.decay:
            follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            follow(list(self.averages.values()), list(self._averaged.values()), None)
        else:
            torch._foreach_copy_(list(self.averages.values()), list(self._averaged.values()))

    def _seed(self, step: int) -> int:
        drawn = int(generator(self.recipe.seed, Stream.DEVICE, step).integers(2**62))
        return drawn + (self.part.start or 0)


def learning_rate(settings: OptimiserSettings, *, step: int, n_steps: int) -> float:
    """Return the rate of a step, counted from 0: a linear rise during the warm-up, then constant or half a cosine."""
    warmup_steps = round(settings.warmup * n_steps)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / (warmup_steps + 1)
    if settings.decay is Decay.CONSTANT:
        return settings.learning_rate
    progress = (step - warmup_steps) / max(1, n_steps - warmup_steps)
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _optimiser(network: nn.Module, settings: OptimiserSettings, *, fused: bool) -> torch.optim.Optimizer:
    """Make the optimiser. Weight decay applies to kernels, not to biases and batch norm."""
    kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = torch.optim.AdamW if settings.name is Optimiser.ADAMW else torch.optim.Adam
    betas = settings.beta1, settings.beta2
    return kind(groups, lr=settings.learning_rate, betas=betas, eps=settings.epsilon, fused=fused or None)


def loss_of(logits: Tensor, classes: Tensor, settings: LossSettings) -> Tensor:
    """Return the weighted sum of cross-entropy and of 1 minus soft Dice, a scalar.

    logits: [N, 4, X, Y]; classes: [N, X, Y] int64.
    """
    log_probabilities = functional.log_softmax(logits.float(), dim=1)
    truth = functional.one_hot(classes, N_CLASSES).movedim(3, 1).to(log_probabilities.dtype)
    total = logits.new_zeros((), dtype=torch.float32)
    if settings.cross_entropy:
        # With the one-hot truth, because the backward pass of indexing is not reproducible on CUDA.
        total = total - settings.cross_entropy * (log_probabilities * truth).sum(dim=1).mean()
    if settings.dice:
        total = total + settings.dice * (1 - soft_dice(log_probabilities.exp(), truth).mean())
    return total


def soft_dice(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Return the Dice of WT, TC and ET over a whole batch, [3]. probabilities, truth (one-hot): [N, 4, X, Y]."""
    predicted, actual = _regions(probabilities), _regions(truth)
    both = (predicted * actual).sum(dim=(1, 2, 3))
    return (2 * both + _SMOOTH) / (predicted.sum(dim=(1, 2, 3)) + actual.sum(dim=(1, 2, 3)) + _SMOOTH)


def _regions(by_class: Tensor) -> Tensor:
    """Sum [N, 4, X, Y] over the classes of each region: [3, N, X, Y]."""
    # Class by class: a list of indices would be copied to the device, which would wait for the copy.
    summed = [torch.stack([by_class[:, index] for index in classes]).sum(dim=0) for classes in REGIONS.values()]
    return torch.stack(summed)


def new_network(settings: NetworkSettings, *, seed: int) -> DRUNet104:
    """Make the network with which a training begins, on the CPU.

    Kernels are He-normal, those of transposed layers and of the output layer Glorot-uniform, biases 0. With zero_residual the
    last convolution of every residual branch is 0, so that each block begins as its shortcut.
    Source: the Keras initialisers of the published code (drunet_cli/network/README.md). Raises WeightsError where model.py and
    the table of its layers differ, so that the weights could not be saved.
    """
    torch.manual_seed(seed)
    network = DRUNet104(settings.base_width, bn_epsilon=settings.bn_epsilon, dropout=settings.dropout)
    check_model(network)
    kernels = starts()
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            draw_kernel = nn.init.xavier_uniform_ if kernels[path] is Start.GLOROT_UNIFORM else _he_normal
            draw_kernel(module.weight)
            nn.init.zeros_(network.get_parameter(f"{path}.bias"))
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = settings.bn_momentum
    if settings.zero_residual:
        for path, start in kernels.items():
            if start is Start.END_OF_BRANCH:
                nn.init.zeros_(network.get_parameter(f"{path}.weight"))
    return network


def _he_normal(kernel: Tensor) -> None:
    sd = math.sqrt(2 / kernel[0].numel()) / _SD_OF_CUT_NORMAL
    nn.init.trunc_normal_(kernel, std=sd, a=-_CUT_AT_SD * sd, b=_CUT_AT_SD * sd)
