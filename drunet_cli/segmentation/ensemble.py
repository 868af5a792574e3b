"""The networks that compute a segmentation: their weights and engines, opened when the first case needs them."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from drunet_cli.host import cpu_grants, granted_cpus, limit_openmp_spinning
from drunet_cli.network.engine import (
    Engine,
    EngineName,
    WindowMode,
    choose_engine,
    fastest_precision,
    open_engine,
    settle_device,
)
from drunet_cli.segmentation.settings import Settings
from drunet_cli.weights.checkpoint import Checkpoint, Postprocessing
from drunet_cli.weights.registry import caveat_of, check_available

_LOG: Final = logging.getLogger("drunet_cli")


class Ensemble:
    """An engine for each set of weights of the settings, all on one device. One set of weights is the common case.

    Weights and engines are opened at their first use, and kept. For one thread at a time.
    on_warning: called with what a user should know. open_weights: opens a set of weights by name or file.
    Raises MisuseError for settings that no engine fulfils.
    """

    def __init__(
        self, settings: Settings, *, on_warning: Callable[[str], None], open_weights: Callable[[str], Checkpoint]
    ) -> None:
        self.settings = settings
        self.threads = settings.threads or granted_cpus()
        source = "as asked for" if settings.threads else ", ".join(f"{name} {n}" for name, n in cpu_grants().items())
        _LOG.info("threads: %d (%s)", self.threads, source)
        self._on_warning = on_warning
        self._open_weights = open_weights
        asked: Any = {"device": settings.device, "sampling": settings.mc_samples > 0}
        self._precision = fastest_precision(settings.engine, **asked) if settings.fast else settings.precision
        self._engine_name = choose_engine(settings.engine, precision=self._precision, **asked)

    def check_weights(self) -> None:
        """Raise WeightsError for weights that cannot be had, before anything is read or downloaded."""
        for name in self.settings.weights:
            check_available(name)

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The weights, downloaded if need be; what is to be said of their results is told once. Raises WeightsError."""
        checkpoints = tuple(self._open_weights(name) for name in self.settings.weights)
        if caveat := caveat_of([checkpoint.sha256 for checkpoint in checkpoints]):
            self._on_warning(caveat)
        return checkpoints

    @cached_property
    def engines(self) -> tuple[Engine, ...]:
        """An engine for each set of weights. Raises DeviceError for an absent device, before a download begins.

        Raises WeightsError, and MisuseError for weights that do not say what the settings leave to them.
        """
        limit_openmp_spinning()
        device = settle_device(self._engine_name, self.settings.device, on_warning=self._on_warning)
        self.settings.window_for(self._metadata)
        rates = self.settings.dropout_rates(self._metadata)
        self.settings.postprocessing_for(self._metadata)
        return tuple(
            open_engine(
                self._engine_name,
                checkpoint,
                device=device,
                precision=self._precision,
                batch_size=self.settings.batch_size,
                threads=self.threads,
                dropout=rate,
                deterministic=self.settings.deterministic,
                named=self.settings.engine is not EngineName.AUTO,
                on_warning=self._on_warning,
            )
            for checkpoint, rate in zip(self.checkpoints, rates, strict=True)
        )

    def open(self) -> None:
        """Open weights and engines now, which may take a download."""
        _ = self.engines

    @property
    def window(self) -> WindowMode:
        """What the networks see of a slice. Opens the weights."""
        return self.settings.window_for(self._metadata)

    @property
    def postprocessing(self) -> Postprocessing:
        """What is changed in the label map. Opens the weights."""
        return self.settings.postprocessing_for(self._metadata)

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as the sidecar has them. Opens the weights."""
        return self.settings.recorded(self._metadata)

    @property
    def compared(self) -> dict[str, Any]:
        """The settings that make a label map what it is. Opens the weights."""
        return self.settings.compared(self._metadata)

    @property
    def _metadata(self) -> list[Any]:
        return [checkpoint.metadata for checkpoint in self.checkpoints]
