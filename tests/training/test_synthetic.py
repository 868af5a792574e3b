"""A network that is trained from nothing on synthetic cases finds the tumours of others."""

from pathlib import Path
from typing import Final

import pytest

from drunet_cli.phantom.scanner import make_phantom, write_phantom
from tests.support import Drunet
from tests.training.test_loop import rows_of

N_CASES: Final = 10  # of which a fifth is held out: two
SHAPE: Final = (144, 176, 64)
# Narrow networks and few steps want a higher learning rate than the recipe's.
CONFIG: Final = """
[network]
base_width = 2
[batches]
size = 6
windows = [[112, 144]]
[optimiser]
learning_rate = 0.01
[validation]
every_epochs = 100
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_narrow_network_learns_to_find_synthetic_tumours_in_a_few_minutes(tmp_path: Path, drunet: Drunet) -> None:
    for seed in range(N_CASES):
        write_phantom(make_phantom(seed, shape=SHAPE), tmp_path / "cases", f"phantom_{seed:02d}")
    (tmp_path / "config.toml").write_text(CONFIG)
    done = drunet("train", "cases", "-o", "run", "--config", "config.toml", "--steps", "1000", timeout=1700)
    assert done.returncode == 0, done.stderr
    assert float(rows_of(tmp_path / "run" / "metrics.csv")[-1]["dice_WT"]) > 0.9
