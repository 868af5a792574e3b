"""From the words of a command line to what computes."""

from dataclasses import replace
from pathlib import Path

import pytest

from drunet_cli.brats import Labels
from drunet_cli.cli import computing
from drunet_cli.cli.computing import Computing, Opening
from drunet_cli.cli.console import Screen
from drunet_cli.network.acquisition import open_weights
from drunet_cli.network.checkpoint import HalfPrecision, write_checkpoint
from drunet_cli.network.engine import EngineName, Precision
from tests.support import GOLDEN_WEIGHTS


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """Weights that record equal labels in float16."""
    golden = open_weights(str(GOLDEN_WEIGHTS))
    record = HalfPrecision(precision=Precision.FLOAT16, dice=1.0, n_cases=10, device="a GPU", torch="2.11.0")
    path = tmp_path / "measured.safetensors"
    write_checkpoint(path, golden.state, replace(golden.metadata, half_precision=(record,)), overwrite=False)
    return path


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", "cuda:0", "float16"),
        ("auto", "cpu", "float32"),
        ("float32", "cuda:0", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_precision_is_one_for_what_computes_and_for_what_existing_outputs_are_compared_with(
    measured: Path, monkeypatch: pytest.MonkeyPatch, asked: str, device: str, expected: str
) -> None:
    monkeypatch.setattr(computing, "settle_device", lambda *_, **__: device)
    opened: list[Precision] = []
    monkeypatch.setattr(computing, "open_engine", lambda *_, precision, **__: opened.append(precision))
    asked_of = Computing(weights=(str(measured),), precision=Precision(asked), engine=EngineName.TORCH, threads=1)
    opening = Opening(asked_of, Screen())
    assert opening.making(Labels.BRATS2020).settings["precision"] == expected
    opening.network()
    assert opened == [Precision(expected)]


def test_weights_that_record_nothing_are_float32_before_anybody_asks_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(computing, "settle_device")
    opening = Opening(Computing(weights=(str(GOLDEN_WEIGHTS),), engine=EngineName.TORCH, threads=1), Screen())
    assert opening.precision is Precision.FLOAT32
