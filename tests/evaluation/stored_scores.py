"""What make_reference_scores.py stored, beside the pairs it was made of."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.evaluation.random_pairs import random_pairs

STORED: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("reference_scores.json").read_text())
PAIRS: Final = {pair.name: pair for pair in random_pairs()}
# Both sides compute in float64 and differed by no more than 3e-14 when the file was made.
TOLERANCE: Final = 1e-9

every_pair = pytest.mark.parametrize("name", PAIRS)
