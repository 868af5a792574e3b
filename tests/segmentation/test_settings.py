"""The settings of a run: what cannot be, what excludes one another, and what is recorded and compared."""

from dataclasses import fields, replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drunet_cli.brats import Modality
from drunet_cli.errors import MisuseError
from drunet_cli.network.engine import EngineName, Precision, WindowMode
from drunet_cli.segmentation.settings import Settings
from drunet_cli.weights.checkpoint import Metadata, Postprocessing

PUBLISHED: Final = Metadata(name="published", base_width=16, bn_epsilon=1e-3)
WINDOWED: Final = replace(PUBLISHED, name="windowed", window="auto")
RECORDED: Final = replace(PUBLISHED, name="recorded", dropout=0.5, postprocessing=Postprocessing(min_volume_ml=(1, 0.3, 0)))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"weights": ()}, "weights: name at least one"),
        ({"device": "gpu"}, "'gpu' is none of auto, cpu"),
        ({"device": "cuda:0,cuda:1"}, "is none of auto, cpu"),
        ({"batch_size": 0}, "batch_size=0: must be 1 or more"),
        ({"threads": -1}, "threads=-1: must be 1 or more"),
        ({"mc_samples": -1}, "mc_samples=-1: must be 0 or more"),
        ({"mc_samples": 2, "seed": -1}, "seed=-1: must be 0 or more"),
        ({"mc_samples": 2, "dropout": 1.0}, "dropout=1.0: a rate is 0 or more, and below 1"),
        ({"min_volume_ml": float("nan")}, "min_volume_ml=nan"),
        ({"min_volume_ml": float("inf")}, "min_volume_ml=inf: must be 0 or more, and finite"),
        ({"min_volume_ml": (1, 0.5)}, "give one volume, or one each for WT, TC, ET"),
        ({"min_volume_ml": (1, 0.5, -0.1)}, "must be 0 or more, and finite"),
        ({"min_enhancing_ml": -1.0}, "min_enhancing_ml=-1.0"),
    ],
    ids=str,
)
def test_a_word_or_number_that_cannot_be_is_a_value_error(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("together", "reason"),
    [
        ({"dropout": 0.0, "mc_samples": 2}, "dropout=0: samples differ only"),
        ({"dropout": 0.5}, "give mc_samples=N too"),
        ({"seed": 3}, "give mc_samples=N too"),
        ({"recommended_postprocessing": True, "min_volume_ml": 0.1}, "recommended_postprocessing=True chooses min_volume_ml=N"),
        ({"recommended_postprocessing": True, "min_enhancing_ml": 0.1}, "recommended_postprocessing=True chooses"),
        ({"skip_existing": True, "overwrite": True}, "skip_existing=True and overwrite=True exclude"),
        ({"skip_existing": True, "sidecar": False}, "skip_existing=True needs the sidecars"),
    ],
    ids=str,
)
def test_settings_that_exclude_one_another_are_misuse_and_named_as_parameters(together: dict[str, Any], reason: str) -> None:
    with pytest.raises(MisuseError, match=reason):
        Settings(**together)


def test_weights_are_run_as_they_were_trained_unless_asked_otherwise() -> None:
    assert Settings().window_for([PUBLISHED]) is WindowMode.FULL
    assert Settings().window_for([WINDOWED, WINDOWED]) is WindowMode.AUTO
    assert Settings(window=WindowMode.FULL).window_for([WINDOWED]) is WindowMode.FULL
    assert Settings(fast=True).window_for([PUBLISHED]) is WindowMode.AUTO
    with pytest.raises(MisuseError, match="choose window=full or window=auto"):
        Settings().window_for([PUBLISHED, WINDOWED])


def test_samples_take_the_rate_that_is_given_else_the_recorded_one() -> None:
    assert Settings().dropout_rates([PUBLISHED, RECORDED]) == [0, 0]
    assert Settings(mc_samples=2).dropout_rates([RECORDED]) == [0.5]
    assert Settings(mc_samples=2, dropout=0.2).dropout_rates([PUBLISHED, RECORDED]) == [0.2, 0.2]
    for weights, reason in ((PUBLISHED, "do not record"), (replace(PUBLISHED, dropout=0.0), "were trained without")):
        with pytest.raises(MisuseError, match=f"the weights published {reason}.*name one by dropout=P"):
            Settings(mc_samples=2).dropout_rates([RECORDED, weights])


def test_postprocessing_is_as_given_unless_that_of_the_weights_is_asked_for() -> None:
    recommended = Settings(recommended_postprocessing=True)
    assert Settings().postprocessing_for([RECORDED]) == Postprocessing()
    assert Settings(min_enhancing_ml=0.2).postprocessing_for([RECORDED]) == Postprocessing(min_enhancing_ml=0.2)
    assert recommended.postprocessing_for([RECORDED, RECORDED]) == RECORDED.postprocessing
    assert (recommended.recorded([RECORDED])["min_volume_ml"], recommended.cleans_up) == ([1, 0.3, 0], True)
    other = replace(RECORDED, name="other", postprocessing=Postprocessing(min_volume_ml=0.4))
    for weights, reason in (
        (PUBLISHED, "the weights published recommend none"),
        (other, "recorded and other recommend different"),
    ):
        with pytest.raises(MisuseError, match=reason):
            recommended.postprocessing_for([RECORDED, weights])


def test_a_plain_run_is_recorded_in_full() -> None:
    assert Settings().recorded([PUBLISHED]) == {
        "window": "full",
        "tta": "none",
        "mc_samples": 0,
        "dropout": None,
        "seed": None,
        "within_brain": False,
        "min_volume_ml": 0.0,
        "min_enhancing_ml": 0.0,
        "deterministic": False,
    }
    asked = Settings(mc_samples=2, flips=True, deterministic=True, window=WindowMode.AUTO, min_volume_ml=0.5)
    other = replace(RECORDED, dropout=0.2)
    assert asked.recorded([RECORDED, other]) == {
        "window": "auto",
        "tta": "flips",
        "mc_samples": 2,
        "dropout": {"rate": [0.5, 0.2], "source": "recorded in the weights"},
        "seed": 0,
        "within_brain": False,
        "min_volume_ml": 0.5,
        "min_enhancing_ml": 0.0,
        "deterministic": True,
    }


# Each field, with another value than the default, and whether a label map made with it may be another one.
CHANGES: Final[dict[str, tuple[dict[str, Any], bool]]] = {
    "device": ({"device": "cuda:1"}, False),
    "precision": ({"precision": Precision.BFLOAT16}, True),
    "engine": ({"engine": EngineName.TORCH}, True),
    "window": ({"window": WindowMode.AUTO}, True),
    "fast": ({"fast": True}, True),
    "deterministic": ({"deterministic": True}, False),
    "batch_size": ({"batch_size": 3}, False),
    "threads": ({"threads": 3}, False),
    "flips": ({"flips": True}, True),
    "mc_samples": ({"mc_samples": 2}, True),
    "dropout": ({"mc_samples": 2, "dropout": 0.2}, True),
    "seed": ({"mc_samples": 2, "seed": 5}, True),
    "within_brain": ({"within_brain": True}, True),
    "min_volume_ml": ({"min_volume_ml": (0, 0, 0.1)}, True),
    "min_enhancing_ml": ({"min_enhancing_ml": 0.1}, True),
    "recommended_postprocessing": ({"recommended_postprocessing": True}, True),
    "probabilities": ({"probabilities": True}, False),
    "uncertainty": ({"uncertainty": True}, False),
    "preview": ({"preview": True}, False),
    "viewer": ({"viewer": True}, False),
    "bids": ({"bids": True}, False),
    "in_space": ({"in_space": (Modality.T1,)}, False),
    "shows_preparation": ({"shows_preparation": True}, False),
    "dicom_seg": ({"dicom_seg": True}, False),
    "strict": ({"strict": True}, False),
    "overwrite": ({"overwrite": True}, False),
    "skip_existing": ({"skip_existing": True}, False),
}


def test_every_setting_that_may_change_a_voxel_is_compared() -> None:
    # The weights by their SHA-256, the label values by the sidecar's own key; without a sidecar there is nothing to compare.
    assert CHANGES.keys() == {each.name for each in fields(Settings)} - {"weights", "labels", "sidecar"}
    plain, sampled = Settings().compared([RECORDED]), Settings(mc_samples=2).compared([RECORDED])
    for name, (change, matters) in CHANGES.items():
        before = sampled if name in ("dropout", "seed") else plain
        assert (Settings(**change).compared([RECORDED]) != before) == matters, name


def test_the_precision_of_a_fast_run_is_the_processors_and_not_compared() -> None:
    compared = Settings(fast=True).compared([RECORDED])
    assert compared["window"] == "auto"
    assert "precision" not in compared


@given(
    window=st.sampled_from([None, *WindowMode]),
    flips=st.booleans(),
    mc_samples=st.integers(0, 3),
    seed=st.integers(0, 3),
    min_volume_ml=st.floats(0, 1),
)
def test_settings_are_found_again_in_what_they_record(mc_samples: int, seed: int, **asked: Any) -> None:
    settings = Settings(mc_samples=mc_samples, seed=seed if mc_samples else 0, **asked)
    recorded = {**settings.recorded([RECORDED]), "precision": "float32", "engine": "torch"}
    assert settings.compared([RECORDED]).items() <= recorded.items()
