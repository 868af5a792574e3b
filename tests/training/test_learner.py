"""What a step does to the network, its optimiser and its average."""

import math
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor

from drunet_cli.network.engine import Precision
from drunet_cli.training.batches import BatchPlan, Window
from drunet_cli.training.learner import Learner, learning_rate, new_network
from drunet_cli.training.recipe import RECIPES, AugmentationSettings, Decay, OptimiserSettings, Recipe, RecipeName, changed

NO_AUGMENTATION: Final = dict.fromkeys((item.name for item in fields(AugmentationSettings)), 0.0)
PEAK: Final = 2e-3
N_STEPS: Final = 100
SETTINGS: Final = OptimiserSettings(learning_rate=PEAK, warmup=0.1, decay=Decay.COSINE)
WARMUP_STEPS: Final = 10
RECIPE: Final = changed(
    RECIPES[RecipeName.MODERN],
    {"network": {"base_width": 1}, "batches": {"size": 4}, "optimiser": {"warmup": 0.0, "decay": "constant"}},
    where="",
)


def rate(step: int, settings: OptimiserSettings = SETTINGS) -> float:
    return learning_rate(settings, step=step, n_steps=N_STEPS)


def test_learning_rate_rises_linearly_and_begins_above_0() -> None:
    assert [rate(step) for step in range(WARMUP_STEPS)] == pytest.approx([PEAK * step / 11 for step in range(1, 11)])


def test_learning_rate_is_at_its_height_right_after_the_warm_up() -> None:
    assert max(range(N_STEPS), key=rate) == WARMUP_STEPS
    assert rate(WARMUP_STEPS) == PEAK


def test_learning_rate_falls_as_half_a_cosine() -> None:
    middle = (WARMUP_STEPS + N_STEPS) // 2
    assert rate(middle) == pytest.approx(PEAK / 2)
    assert rate(WARMUP_STEPS + 30) == pytest.approx(PEAK * (1 + math.cos(math.pi / 3)) / 2)
    assert all(before > after for before, after in pairwise(map(rate, range(WARMUP_STEPS, N_STEPS))))


def test_learning_rate_ends_near_0_and_above() -> None:
    # One step before the end of the cosine: (pi / 90)^2 / 4 of its height.
    assert rate(N_STEPS - 1) == pytest.approx(PEAK * (math.pi / 90) ** 2 / 4, rel=1e-3)


def test_constant_learning_rate_stays_at_its_height_after_the_warm_up() -> None:
    constant = replace(SETTINGS, decay=Decay.CONSTANT)
    assert {rate(step, constant) for step in range(WARMUP_STEPS, N_STEPS)} == {PEAK}
    assert rate(WARMUP_STEPS - 1, constant) < PEAK


@pytest.mark.parametrize("decay", list(Decay))
def test_learning_rate_without_warm_up_begins_at_its_height(decay: Decay) -> None:
    assert rate(0, replace(SETTINGS, warmup=0.0, decay=decay)) == PEAK


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_learning_rate_of_a_training_of_few_steps_is_above_0(n_steps: int) -> None:
    for settings in (SETTINGS, replace(SETTINGS, warmup=1.0)):
        assert all(0 < learning_rate(settings, step=step, n_steps=n_steps) <= PEAK for step in range(n_steps))


def learner(recipe: Recipe = RECIPE, *, n_steps: int = N_STEPS, precision: Precision = Precision.FLOAT32) -> Learner:
    network = new_network(recipe.network, seed=recipe.seed)
    return Learner(network, recipe, n_steps=n_steps, device=torch.device("cpu"), precision=precision)


def with_changes(**sections: dict[str, Any]) -> Recipe:
    return changed(RECIPE, sections, where="")


def plan(step: int, shape: tuple[int, int] = (16, 16), n: int = 4) -> BatchPlan:
    return BatchPlan(step, shape, (Window(case=0, z=0, x=0, y=0, flip_x=False, flip_y=False),) * n)


def batch(shape: tuple[int, int] = (16, 16), n: int = 4) -> Tensor:
    """[N, X, Y, 5]: a class that can be told from the brightness."""
    rng = np.random.default_rng(0)
    classes = np.zeros((n, *shape), dtype=np.uint8)
    classes[:, 4:12, 4:10] = rng.integers(1, 4, (n, 1, 1))
    grey = 60 + 50 * classes[..., np.newaxis] + rng.integers(0, 20, (n, *shape, 4), dtype=np.uint8)
    return torch.from_numpy(np.concatenate([grey, classes[..., np.newaxis]], axis=-1))


def parameters(of: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.network.named_parameters()}


def numbers(of: Learner) -> dict[str, Tensor]:
    """Parameters and batch-norm statistics."""
    return {name: tensor.clone() for name, tensor in of.network.state_dict().items() if tensor.is_floating_point()}


def test_step_changes_every_kernel() -> None:
    one = learner(with_changes(network={"zero_residual": False}))  # else what is behind a zero has no gradient yet
    before = parameters(one)
    one.step(batch(), plan(0))
    after = parameters(one)
    assert not [name for name, tensor in before.items() if tensor.ndim == 4 and torch.equal(tensor, after[name])]


def test_step_changes_biases_and_batch_norm() -> None:
    one = learner()
    before = parameters(one)
    one.step(batch(), plan(0))
    after = parameters(one)
    assert not [name for name in ("head.bias", "head_norm.weight", "head_norm.bias") if torch.equal(before[name], after[name])]


def test_steps_on_one_batch_lower_its_loss() -> None:
    one = learner(with_changes(augmentation=NO_AUGMENTATION, optimiser={"learning_rate": 0.03}))
    pixels, shape = batch((48, 48)), (48, 48)
    losses = [float(one.step(pixels, plan(step, shape))) for step in range(15)]
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_loss_of_a_step_is_a_number_that_waits_for_no_gradient() -> None:
    loss = learner().step(batch(), plan(0))
    assert (loss.shape, loss.dtype, loss.requires_grad) == ((), torch.float32, False)


def test_step_leaves_no_gradient_behind() -> None:
    one = learner()
    one.step(batch(), plan(0))
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in one.network.parameters())


def test_same_steps_give_equal_bytes() -> None:
    ends = []
    for n_other_draws in (0, 5):
        one = learner(with_changes(network={"dropout": 0.3}))
        torch.rand(n_other_draws)
        for step in range(2):
            one.step(batch(), plan(step))
        ends.append(numbers(one))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_another_step_varies_the_same_batch_otherwise() -> None:
    recipe = with_changes(augmentation={"noise": 0.0})  # which has a seed of its own
    losses = {float(learner(recipe).step(batch(), plan(step))) for step in range(3)}
    assert len(losses) == 3


def test_another_step_drops_out_otherwise() -> None:
    recipe = with_changes(network={"dropout": 0.5}, augmentation=NO_AUGMENTATION)
    one, other = (learner(recipe).step(batch(), plan(step)) for step in range(2))
    assert float(one) != float(other)


@pytest.mark.parametrize(("name", "kind"), [(RecipeName.PAPER, torch.optim.Adam), (RecipeName.MODERN, torch.optim.AdamW)])
def test_optimiser_is_that_of_the_recipe_with_its_numbers(name: RecipeName, kind: type) -> None:
    recipe = changed(RECIPES[name], {"network": {"base_width": 1}}, where="")
    optimiser, settings = learner(recipe).optimiser, recipe.optimiser
    assert type(optimiser) is kind
    for group in optimiser.param_groups:
        assert (group["betas"], group["eps"]) == ((settings.beta1, settings.beta2), settings.epsilon)


def test_step_learns_at_the_rate_of_its_step() -> None:
    recipe = with_changes(optimiser={"warmup": 0.1, "decay": "cosine"})
    one = learner(recipe)
    one.step(batch(), plan(3))
    expected = learning_rate(recipe.optimiser, step=3, n_steps=N_STEPS)
    assert [group["lr"] for group in one.optimiser.param_groups] == [expected, expected]


def test_weight_decay_shrinks_kernels_alone() -> None:
    decaying, plain = (learner(with_changes(optimiser={"weight_decay": decay})) for decay in (0.5, 0.0))
    before = parameters(plain)
    for one in (decaying, plain):
        one.step(batch(), plan(0))
    shrunk = RECIPE.optimiser.learning_rate * 0.5  # decoupled (AdamW): by that share, whatever the gradient
    after = parameters(decaying)
    for name, parameter in parameters(plain).items():
        expected = parameter - shrunk * before[name] * (parameter.ndim == 4)
        assert torch.allclose(after[name], expected, rtol=1e-5, atol=1e-7), name  # float32


@pytest.mark.parametrize("clip_norm", [0.1, 1e-3])
def test_gradient_is_clipped_to_its_norm(clip_norm: float) -> None:
    # Its norm may exceed by the rounding of float32, and falls short by the 1e-6 that torch adds where it divides.
    assert norm_of_gradient(with_changes(optimiser={"clip_norm": clip_norm})) == pytest.approx(clip_norm, rel=1e-4)


def test_gradient_below_the_norm_is_left_as_it_is() -> None:
    free = norm_of_gradient(with_changes(optimiser={"clip_norm": 0.0}))
    assert norm_of_gradient(with_changes(optimiser={"clip_norm": 2 * free})) == free


def test_gradient_is_not_clipped_where_the_recipe_has_no_norm() -> None:
    assert norm_of_gradient(with_changes(optimiser={"clip_norm": 0.0})) > 0.1


def norm_of_gradient(recipe: Recipe) -> float:
    """As the optimiser sees it in the first step."""
    one, norms = learner(recipe), []

    def measure(*_: object) -> None:
        gradients = [parameter.grad for parameter in one.network.parameters() if parameter.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

    one.optimiser.register_step_pre_hook(measure)
    one.step(batch(), plan(0))
    return norms[0]


def test_average_begins_as_the_weights() -> None:
    one = learner()
    weights = numbers(one)
    assert all(torch.equal(average, weights[name]) for name, average in one.averages.items())


def test_average_without_decay_is_the_weights_themselves() -> None:
    one = learner(with_changes(average={"decay": 0.0}))
    for step in range(2):
        one.step(batch(), plan(step))
    weights = numbers(one)
    assert all(torch.equal(average, weights[name]) for name, average in one.averages.items())


def test_average_is_of_every_parameter_and_batch_norm_statistic() -> None:
    one = learner()
    assert one.averages.keys() == numbers(one).keys()


@pytest.mark.parametrize(
    ("step", "decay"),
    # The rule of the average's start: (n + 1) / (n + 10) after n steps, until that exceeds the recipe's decay.
    [(0, 1 / 10), (5, 6 / 15), (10_000, 0.99)],
)
def test_average_follows_closely_at_first_and_by_its_decay_later(step: int, decay: float) -> None:
    one = learner(with_changes(average={"decay": 0.99}), n_steps=20_000)
    before = numbers(one)
    one.step(batch(), plan(step))
    after = numbers(one)
    for name, average in one.averages.items():
        expected = decay * before[name] + (1 - decay) * after[name]
        assert torch.allclose(average, expected, rtol=1e-5, atol=1e-6), name  # float32


def test_average_is_no_memory_of_the_networks() -> None:
    one = learner()
    own = {tensor.data_ptr() for tensor in one.network.state_dict().values()}
    assert not own & {average.data_ptr() for average in one.averages.values()}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_with_one_number_that_is_none_are_not_finite(value: float) -> None:
    one = learner()
    assert one.is_finite()
    with torch.no_grad():
        one.network.head.bias[2] = value
    assert not one.is_finite()


def test_bfloat16_gives_the_loss_of_float32_roughly() -> None:
    pixels = batch((48, 48))
    losses = [float(learner(precision=of).step(pixels, plan(0, (48, 48)))) for of in (Precision.FLOAT32, Precision.BFLOAT16)]
    # bfloat16 has 8 bits, and errors of some hundred layers add up; computed in float32 they would be equal.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_weights_stay_in_float32_whatever_the_precision() -> None:
    one = learner(precision=Precision.BFLOAT16)
    one.step(batch(), plan(0))
    assert {parameter.dtype for parameter in one.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(("base_width", "order"), [(1, torch.contiguous_format), (4, torch.channels_last)])
def test_narrow_networks_alone_keep_the_usual_order_of_memory(base_width: int, order: torch.memory_format) -> None:
    assert learner(with_changes(network={"base_width": base_width})).memory_format == order


def test_part_of_a_batch_is_varied_as_in_the_whole() -> None:
    """What two processes learn from is what one does; without batch norm's statistics, which each takes of its own part."""
    seen: list[Tensor] = []
    pixels = batch()
    recipe = with_changes(augmentation={"noise": 0.0})
    make = partial(new_network, recipe.network, seed=0)
    for part in (slice(0, 4), slice(0, 2), slice(2, 4)):
        one = Learner(make(), recipe, n_steps=9, device=torch.device("cpu"), part=part)
        one.forward.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
        one.step(pixels[part], plan(0))
    assert torch.equal(torch.cat(seen[1:]), seen[0])
