"""How a command line wants the network to be run, from its words to what computes."""

from dataclasses import dataclass
from functools import cached_property

from drunet_cli.brats import Labels
from drunet_cli.cli.console import Screen
from drunet_cli.cli.signals import raise_lost
from drunet_cli.network.checkpoint import Checkpoint
from drunet_cli.network.engine import EngineName, Precision, WindowMode
from drunet_cli.network.engines import choose_engine, open_engine, settle_device
from drunet_cli.network.registry import ENTRIES, PUBLISHED_BASE_WIDTH, check_available
from drunet_cli.segmentation.cohort import Network
from drunet_cli.segmentation.existing import Making


@dataclass(frozen=True, kw_only=True)
class Computing:
    """What the options say. devices: one, or several CUDA devices. threads: of the CPU. window: None as the weights say."""

    weights: str
    devices: tuple[str, ...] = ("auto",)
    precision: Precision = Precision.AUTO
    engine: EngineName = EngineName.AUTO
    window: WindowMode | None = None
    batch_size: int | None = None
    threads: int


class Opening:
    """Opens weights and engines when they are first asked for. Raises MisuseError for an engine that cannot be had."""

    def __init__(self, computing: Computing, screen: Screen) -> None:
        self.computing = computing
        self._screen = screen
        self._engine = choose_engine(computing.engine, device=computing.devices[0], precision=computing.precision)

    def check(self) -> None:
        """Raise WeightsError for weights that cannot be had, before anything is read."""
        check_available(self.computing.weights)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The weights, downloaded if need be."""
        from drunet_cli.cli.downloads import DownloadWatcher
        from drunet_cli.network.acquisition import open_weights

        name = self.computing.weights
        with DownloadWatcher(self._screen).shown() as watcher:
            checkpoint = open_weights(name, watcher=watcher)
        width = checkpoint.metadata.base_width
        if name in ENTRIES and width != PUBLISHED_BASE_WIDTH:
            self._screen.warning(f"the weights imported as {name} have base width {width}; they are others")
        return checkpoint

    @property
    def window(self) -> WindowMode:
        """As asked for, else as the weights were trained."""
        return self.computing.window or WindowMode(self.checkpoint.metadata.window)

    def making(self, labels: Labels) -> Making:
        """What a label map must have been made with to be the same, as far as it was decided."""
        precision = Precision.FLOAT32 if self.computing.precision is Precision.AUTO else self.computing.precision
        decided = {"precision": precision.value, "window": self.window.value}
        if self.computing.engine is not EngineName.AUTO:
            decided["engine"] = self.computing.engine.value
        return Making(weights_sha256=self.checkpoint.sha256, labels=labels, settings=decided)

    def network(self) -> Network:
        """Open weights and engines. The device first: that it is absent is known before a download."""
        from drunet_cli.host import wait_considerately

        wait_considerately()
        where = [settle_device(self._engine, device, on_warning=self._screen.warning) for device in self.computing.devices]
        raise_lost()
        checkpoint = self.checkpoint
        engines = [
            open_engine(
                self._engine,
                checkpoint,
                device=device,
                precision=self.computing.precision,
                batch_size=self.computing.batch_size,
                threads=self.computing.threads,
                on_warning=self._screen.warning,
            )
            for device in where
        ]
        return Network(checkpoint=checkpoint, engines=engines, window=self.window)
