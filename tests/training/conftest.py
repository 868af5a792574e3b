"""Cases to train on."""

from pathlib import Path

import pytest

from tests.conversion.small_cases import small_case
from tests.training.test_loop import N_CASES


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small cases with segmentations, for all tests of a module."""
    folder = tmp_path_factory.mktemp("small") / "cases"
    for n in range(N_CASES):
        small_case(folder, name=f"case_{n}", seed=n)
    return folder
