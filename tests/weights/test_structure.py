"""What a set of weights must hold is what the model has."""

import pytest
import torch

from drunet_cli.network.model import DRUNet104
from drunet_cli.weights.structure import tensor_shapes


@pytest.mark.parametrize("base_width", [1, 2, 16])
def test_names_and_shapes_are_those_of_the_model(base_width: int) -> None:
    with torch.device("meta"):
        model = DRUNet104(base_width, bn_epsilon=1e-3)
    shapes = {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    assert tensor_shapes(base_width) == shapes
