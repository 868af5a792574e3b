"""The switches of PyTorch: as drunet needs them while it computes, and then as they were."""

import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import pytest
import torch

from drunet_cli.network.torch_engine import TorchEngine, exact_arithmetic
from drunet_cli.weights.checkpoint import Checkpoint

Switches = tuple[object, bool, bool, bool]
CPU = torch.device("cpu")


def switches() -> Switches:
    """TF32 in convolutions, cuDNN's choice by the clock, and whether only deterministic algorithms may run, or warn."""
    cudnn = torch.backends.cudnn
    tf32 = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32  # the first since torch 2.9
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), warns


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_switches_of_a_program_that_calls_are_put_back(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = switches()
    with suppress(KeyError), exact_arithmetic(deterministic=deterministic):
        assert switches()[0] in ("ieee", False)
        assert switches()[1:] == ((False, True, False) if deterministic else before[1:])
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic
        raise KeyError
    assert switches() == before
    assert before[0] not in ("ieee", False)


def test_the_switches_stay_until_the_last_of_several_has_left() -> None:
    before = switches()
    first, second = exact_arithmetic(), exact_arithmetic(deterministic=True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert switches()[0] in ("ieee", False)
    assert switches()[1:] == (False, True, False)
    second.__exit__(None, None, None)
    assert switches() == before


def test_who_is_content_with_any_algorithm_allows_none_within_a_deterministic_training() -> None:
    with exact_arithmetic(deterministic=True), exact_arithmetic():
        assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_engine_computes_in_exact_arithmetic_and_only_while_it_computes(
    checkpoint: Checkpoint, slices: npt.NDArray[np.uint8], deterministic: bool
) -> None:
    before = switches()
    seen: list[Switches] = []
    engine = TorchEngine(checkpoint, device=CPU, deterministic=deterministic)
    expected = engine.classes(slices)
    engine._model.register_forward_hook(lambda *_: seen.append(switches()))
    assert np.array_equal(engine.classes(slices), expected)
    assert {(tf32 in ("ieee", False), certain) for tf32, _, certain, _ in seen} == {(True, deterministic)}
    assert switches() == before
