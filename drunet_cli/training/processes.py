"""Which of the processes of a training this one is. No torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from drunet_cli.errors import MisuseError


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is. local_rank: among those of this machine, the number of its GPU."""

    rank: int = 0
    n: int = 1
    local_rank: int = 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.n > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """Which slices of every batch are this process' own. Raises MisuseError where they cannot be dealt out evenly."""
        if batch_size % self.n:
            raise MisuseError(f"a batch of {batch_size} cannot be dealt out to {self.n} processes; give another --batch-size")
        share = batch_size // self.n
        return slice(self.rank * share, (self.rank + 1) * share)


def processes(environment: Mapping[str, str] = os.environ) -> Processes:
    """As torchrun says it; one process where nobody does."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Processes()
    rank, n = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    return Processes(rank, n, int(environment.get("LOCAL_RANK", rank)))
