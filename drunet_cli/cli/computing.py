"""How a command line wants the network to be run, from its words to what computes."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from drunet_cli.brats import Labels
from drunet_cli.cli.console import Screen
from drunet_cli.cli.signals import raise_lost
from drunet_cli.errors import MisuseError
from drunet_cli.network.checkpoint import Checkpoint
from drunet_cli.network.engine import Engine, EngineName, Precision, WindowMode
from drunet_cli.network.engines import choose_engine, open_engine, settle_device
from drunet_cli.network.registry import ENTRIES, PUBLISHED_BASE_WIDTH, check_available
from drunet_cli.segmentation.existing import Making
from drunet_cli.segmentation.postprocess import NO_POSTPROCESSING, Postprocessing
from drunet_cli.segmentation.predict import Plan
from drunet_cli.segmentation.sidecar import Dropout, describe_settings
from drunet_cli.segmentation.steps import Network

_ONE_PASS: Final = Plan(window=WindowMode.FULL)


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What the options say.

    weights: of several the mean is taken. devices: one, or several CUDA devices. threads: of the CPU. window: None as the
    weights say. plan: but for its window. dropout: rate of the plan's samples, None as recorded in the weights.
    """

    weights: tuple[str, ...]
    devices: tuple[str, ...] = ("auto",)
    precision: Precision = Precision.AUTO
    engine: EngineName = EngineName.AUTO
    window: WindowMode | None = None
    batch_size: int | None = None
    threads: int
    plan: Plan = _ONE_PASS
    postprocessing: Postprocessing = NO_POSTPROCESSING
    dropout: float | None = None


class Opening:
    """Opens weights and engines when they are first asked for. Raises MisuseError for an engine that cannot be had."""

    def __init__(self, computing: Computing, screen: Screen) -> None:
        self.computing = computing
        self._screen = screen
        sampling = computing.plan.mc_samples > 0
        self._engine = choose_engine(
            computing.engine, device=computing.devices[0], precision=computing.precision, sampling=sampling
        )

    def check(self) -> None:
        """Raise WeightsError for weights that cannot be had, before anything is read."""
        for name in self.computing.weights:
            check_available(name)

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The weights, downloaded if need be."""
        return tuple(self._opened(name) for name in self.computing.weights)

    def _opened(self, name: str) -> Checkpoint:
        from drunet_cli.cli.downloads import DownloadWatcher
        from drunet_cli.network.acquisition import open_weights

        with DownloadWatcher(self._screen).shown() as watcher:
            checkpoint = open_weights(name, watcher=watcher)
        width = checkpoint.metadata.base_width
        if name in ENTRIES and width != PUBLISHED_BASE_WIDTH:
            self._screen.warning(f"the weights imported as {name} have base width {width}; they are others")
        return checkpoint

    @cached_property
    def plan(self) -> Plan:
        """As asked for; the window else as the weights were trained. Raises MisuseError where these differ in it."""
        if self.computing.window is not None:
            return replace(self.computing.plan, window=self.computing.window)
        windows = {checkpoint.metadata.window for checkpoint in self.checkpoints}
        if len(windows) > 1:
            raise MisuseError("the weights were trained on different windows of the frame; choose by --window full or auto")
        return replace(self.computing.plan, window=WindowMode(windows.pop()))

    @cached_property
    def dropout(self) -> Dropout | None:
        """Rates of the samples. Raises MisuseError for weights that record none, unless one is given."""
        if self.computing.plan.mc_samples == 0:
            return None
        if self.computing.dropout is not None:
            return Dropout(rates=(self.computing.dropout,) * len(self.checkpoints), given=True)
        rates = []
        for checkpoint in self.checkpoints:
            if not checkpoint.metadata.dropout:
                what = (
                    "were trained without dropout" if checkpoint.metadata.dropout == 0 else "do not record their dropout rate"
                )
                raise MisuseError(f"--mc-samples: the weights {checkpoint.metadata.name} {what}; name one by --dropout")
            rates.append(checkpoint.metadata.dropout)
        return Dropout(rates=tuple(rates), given=False)

    def making(self, labels: Labels) -> Making:
        """What a label map must have been made with to be the same, as far as it was decided."""
        precision = Precision.FLOAT32 if self.computing.precision is Precision.AUTO else self.computing.precision
        decided = describe_settings(self.plan, self.computing.postprocessing, self.dropout) | {"precision": precision.value}
        if self.computing.engine is not EngineName.AUTO:
            decided["engine"] = self.computing.engine.value
        sha256 = [checkpoint.sha256 for checkpoint in self.checkpoints]
        return Making(weights_sha256=sha256, labels=labels, settings=decided)

    def network(self) -> Network:
        """Open weights and engines. The device first: that it is absent is known before a download."""
        from drunet_cli.host import wait_considerately

        wait_considerately()
        where = [settle_device(self._engine, device, on_warning=self._screen.warning) for device in self.computing.devices]
        raise_lost()
        rates = [0.0] * len(self.checkpoints) if self.dropout is None else self.dropout.rates
        return Network(
            checkpoints=self.checkpoints,
            engines=[
                [self._engine_of(each, device, rate) for each, rate in zip(self.checkpoints, rates, strict=True)]
                for device in where
            ],
            plan=self.plan,
            postprocessing=self.computing.postprocessing,
            dropout=self.dropout,
        )

    def _engine_of(self, checkpoint: Checkpoint, device: str, dropout: float) -> Engine:
        return open_engine(
            self._engine,
            checkpoint,
            device=device,
            precision=self.computing.precision,
            batch_size=self.computing.batch_size,
            threads=self.computing.threads,
            dropout=dropout,
            on_warning=self._screen.warning,
        )
