"""Runs of many cases without a network: an engine that computes next to nothing, and how it is set to work."""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import ClassMap
from drunet_cli.io.discovery import find_cases
from drunet_cli.network.engine import Engine, EngineName, Precision, WindowMode, ignore_progress
from drunet_cli.segmentation.cohort import Outcome, segment_cases
from drunet_cli.segmentation.plan import PlannedCase, RunPlan, plan_run
from drunet_cli.segmentation.predict import Ensemble
from drunet_cli.segmentation.settings import Settings
from drunet_cli.weights.checkpoint import Checkpoint, Metadata

CHECKPOINT: Final = Checkpoint(metadata=Metadata(name="bright", base_width=1, bn_epsilon=1e-3), state={}, sha256="5eed" * 16)
# Weights that need no download, though nobody opens them; PyTorch, since its samples need no extra; windows, which are small.
SETTINGS: Final = Settings(weights=("compact",), engine=EngineName.TORCH, window=WindowMode.AUTO, threads=1)


class BrightEngine:
    """Takes whatever is bright in T1ce for enhancing tumour, in FLAIR for oedema."""

    name = EngineName.TORCH
    device_name = "none"
    threads = batch_size = 1
    versions: Mapping[str, str] = {}
    precision = Precision.FLOAT32

    def __init__(self, device: str = "cuda:0") -> None:
        self.device = device

    def classes(self, slices: npt.NDArray[np.uint8], *, on_progress: Callable[[int], None] = ignore_progress) -> ClassMap:
        on_progress(len(slices))
        return np.where(slices[..., 1] > 200, 3, np.where(slices[..., 0] > 150, 2, 0)).astype(np.uint8)

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_progress: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        return np.eye(4, dtype=np.float32)[self.classes(slices, on_progress=on_progress)]


class BrightEnsemble(Ensemble):
    """One bright engine. opened: how often it was opened. error: raised in place of opening it."""

    def __init__(
        self,
        settings: Settings = SETTINGS,
        *,
        device: str = "cuda:0",
        error: Exception | None = None,
    ) -> None:
        super().__init__(settings, on_warning=lambda _: None, open_weights=lambda _: CHECKPOINT)
        self._engine = BrightEngine(device)
        self._error = error
        self.opened = 0

    @cached_property
    def engines(self) -> tuple[Engine, ...]:
        self.opened += 1
        if self._error is not None:
            raise self._error
        return (self._engine,)


def plan_of(cohort: Path, out: Path, ensemble: Ensemble) -> RunPlan:
    """The plan of a run over all cases of a folder."""
    found = find_cases([cohort])
    label_maps = {case.name: out / f"{case.name}.nii.gz" for case in found.cases}
    return plan_run(found, ensemble, label_maps, summary=None if found.alone else out / "summary.csv")


def outcomes_of(cohort: Path, out: Path, settings: Settings = SETTINGS) -> Generator[tuple[PlannedCase, Outcome]]:
    """Segment all cases of a folder."""
    ensemble = BrightEnsemble(settings)
    return segment_cases(plan_of(cohort, out, ensemble), ensemble, on_warning=lambda _: None)
