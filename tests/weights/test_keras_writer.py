"""The Keras file against one that Keras itself wrote. Whether Keras loads it was not tried: TensorFlow is not installed."""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from drunet_cli.weights.cache import read_source
from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.keras import read_keras_h5, write_keras_h5
from tests import keras_file
from tests.support import GOLDEN_WEIGHTS


def checkpoint_of(path: Path) -> Checkpoint:
    return read_source(path, name="test", bn_epsilon=1e-3)


def written(checkpoint: Checkpoint) -> io.BytesIO:
    stream = io.BytesIO()
    write_keras_h5(stream, checkpoint)
    return stream


def attributes_of(item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """By name: HDF5 class, whether of variable length, character set, padding and shape, and the values."""
    found = {}
    for name, value in item.attrs.items():
        attribute = item.attrs.get_id(name)
        kind = attribute.get_type()
        text = (kind.is_variable_str(), kind.get_cset(), kind.get_strpad()) if kind.get_class() == h5py.h5t.STRING else ()
        found[name] = (kind.get_class(), text, attribute.shape, np.asarray(value).tolist())
    return found


def contents_of(file: h5py.File) -> dict[str, Any]:
    """Attributes of every item by its path, and of datasets the type, shape and bytes."""
    found: dict[str, Any] = {"/": attributes_of(file)}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        array = (item.dtype.str, item.shape, item[()].tobytes()) if isinstance(item, h5py.Dataset) else None
        found[name] = (attributes_of(item), array)

    file.visititems(visit)
    return found


def test_file_that_came_in_goes_out_equal_in_every_dataset_and_attribute() -> None:
    with h5py.File(written(checkpoint_of(GOLDEN_WEIGHTS))) as ours, h5py.File(GOLDEN_WEIGHTS) as keras:
        assert contents_of(ours) == contents_of(keras)


@pytest.fixture
def random_weights(tmp_path: Path) -> Path:
    path = tmp_path / "random.h5"
    keras_file.write_keras_h5(path, base_width=2, seed=5)
    return path


def test_layers_stand_in_the_same_order_at_every_width(random_weights: Path) -> None:
    with h5py.File(written(checkpoint_of(random_weights))) as ours, h5py.File(GOLDEN_WEIGHTS) as keras:
        assert list(ours.attrs["layer_names"]) == list(keras.attrs["layer_names"])


def test_weights_of_another_width_are_read_back_as_they_were(random_weights: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(random_weights)
    (tmp_path / "again.h5").write_bytes(written(checkpoint).getvalue())
    base_width, state = read_keras_h5(tmp_path / "again.h5")
    assert base_width == 2
    assert state.keys() == checkpoint.state.keys()
    assert all(np.array_equal(state[name], checkpoint.state[name]) for name in state)


def test_equal_weights_give_equal_bytes(random_weights: Path) -> None:
    """HDF5 would note the time of each dataset if it were told to."""
    checkpoint = checkpoint_of(random_weights)
    assert written(checkpoint).getvalue() == written(checkpoint).getvalue()
