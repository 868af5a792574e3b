"""A network of one block a stage, with a third of the layers: trainings of the tests take a third of the time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from drunet_cli.network import model
from drunet_cli.network.engine import changed_network
from drunet_cli.weights import structure

PUBLISHED: Final = structure.STAGE_BLOCKS
SHALLOW: Final = (1,) * len(PUBLISHED)
# The beginning of programs that train such a network in a process of their own, and `drunet` as such a program.
SHALLOW_FROM_HERE: Final = f"""
from drunet_cli.network import model
from drunet_cli.weights import structure
structure.STAGE_BLOCKS = model.STAGE_BLOCKS = {SHALLOW}
"""
SHALLOW_DRUNET: Final = f"{SHALLOW_FROM_HERE}from drunet_cli.__main__ import run\nrun()\n"


@contextmanager
def stage_blocks(numbers: tuple[int, ...]) -> Iterator[None]:
    """Let the network have these numbers of blocks, in the table of its layers and in the model."""
    changed_network()  # kept for the whole process; else the first to ask would be told that somebody changed the network
    with pytest.MonkeyPatch.context() as patch:
        for module in (structure, model):
            patch.setattr(module, "STAGE_BLOCKS", numbers)
        yield
