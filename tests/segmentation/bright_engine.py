"""What runs of many cases are tested with: an engine that computes next to nothing, and how it is set to work."""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import ClassMap, Labels
from drunet_cli.io.discovery import find_cases
from drunet_cli.network.engine import EngineName, Precision, WindowMode, ignore_progress
from drunet_cli.segmentation.cohort import segment_cases
from drunet_cli.segmentation.outputs import Target
from drunet_cli.segmentation.plan import Making
from drunet_cli.segmentation.predict import Plan
from drunet_cli.segmentation.steps import CaseTask, Listener, Network, Outcome
from drunet_cli.weights.checkpoint import Checkpoint, Metadata

PATIENCE_S: Final = 10.0  # for what takes milliseconds
CHECKPOINT: Final = Checkpoint(metadata=Metadata(name="bright", base_width=1, bn_epsilon=1e-3), state={}, sha256="5eed" * 16)
MAKING: Final = Making(
    weights_sha256=[CHECKPOINT.sha256], labels=Labels.BRATS2020, settings={"precision": "float32", "window": "full"}
)


@dataclass(frozen=True)
class BrightEngine:
    """Takes whatever is bright in T1ce for enhancing tumour, in FLAIR for oedema. Calls `meanwhile` whenever it computes."""

    meanwhile: Callable[[], None] = lambda: None
    name: EngineName = EngineName.TORCH
    batch_size: int = 1
    device: str = "cuda:0"
    device_name: str = "none"
    threads: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    precision: Precision = Precision.FLOAT32

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        self.meanwhile()
        on_done(len(slices))
        return np.where(slices[..., 1] > 200, 3, np.where(slices[..., 0] > 150, 2, 0)).astype(np.uint8)

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        return np.eye(4, dtype=np.float32)[self.classes(slices, on_done=on_done)]


def tasks_of(cohort: Path, out: Path, *, skip_if: Making | None = None) -> list[CaseTask]:
    """A task for every case in a folder."""
    return [
        CaseTask(case, Target(label_map=out / f"{case.name}.nii.gz"), skip_if=skip_if) for case in find_cases([cohort]).cases
    ]


def network_of(
    n_engines: int,
    *,
    device: str = "cuda:0",
    meanwhile: Callable[[], None] = lambda: None,
    making: Making | None = None,
) -> Network:
    """So many engines that take what is bright. meanwhile: called while they compute."""
    engines = [[BrightEngine(meanwhile, device=device)]] * n_engines
    return Network(checkpoints=[CHECKPOINT], engines=engines, plan=Plan(window=WindowMode.FULL), making=making)


def outcomes_of(
    tasks: Sequence[CaseTask],
    *,
    n_engines: int = 1,
    device: str = "cuda:0",
    n_cpus: int = 1,
    meanwhile: Callable[[str], None] = lambda _: None,
    making: Making | None = None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Generator[tuple[CaseTask, Outcome]]:
    """Segment them. meanwhile: called with the name of a case while its network computes."""
    here = threading.local()
    network = network_of(n_engines, device=device, meanwhile=lambda: meanwhile(here.case), making=making)
    listener = Listener(on_read=lambda prepared: setattr(here, "case", prepared.case.name), on_progress=on_progress)
    return segment_cases(tasks, lambda: network, n_cpus=n_cpus, listener=listener)
