"""A network and how it is asked, opened once for any number of cases: what `drunet segment` runs, for programs too."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import Labels, Modality, label_values
from drunet_cli.errors import MisuseError
from drunet_cli.host import check_device_name, granted_cpus
from drunet_cli.network.engine import Engine, EngineName, Precision, WindowMode, choose_engine, open_engine, settle_device
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.outputs import Extra, Target
from drunet_cli.segmentation.plan import Making
from drunet_cli.segmentation.predict import Plan, Postprocessing
from drunet_cli.segmentation.sidecar import Dropout, describe_settings, dropout_of
from drunet_cli.segmentation.steps import Network
from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.registry import DEFAULT, check_available


@dataclass(frozen=True)
class SegmentedCase:
    """A segmented case.

    document: what the sidecar holds, as a dictionary: volumes, weights, settings, versions and more.
    """

    _segmentation: pipeline.Segmentation
    document: dict[str, Any]
    labels: Labels

    @property
    def label_map(self) -> npt.NDArray[np.uint8]:
        """Label values [I, J, K] in FLAIR's own axes: 0 background, 1 NCR, 2 ED, and ET: 4, or 3 with "brats2023"."""
        return label_values(self._segmentation.class_map, self.labels)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4, voxel indices to RAS millimetres."""
        views = self._segmentation.prepared.views
        assert views is not None, "every case is prepared for a picture"
        return views.affine

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Of NCR, ED, ET, WT and TC, in mL."""
        return dict(self.document["volumes_ml"])

    @property
    def warnings(self) -> list[str]:
        """What is remarkable of the images or the result, such as slices that are thick, or that no tumour was found."""
        return [warning.message for warning in self._segmentation.warnings]

    @property
    def probabilities(self) -> npt.NDArray[np.float16] | None:
        """[I, J, K, 4] by class, where they were asked for: background, NCR, ED, ET."""
        return self._segmentation.prediction.probabilities

    @property
    def uncertainty(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """[I, J, K] of WT, TC and ET, where it was asked for: from 0, certain, to 100."""
        found = self._segmentation.prediction.uncertainty
        return None if found is None else dict(found)

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, sidecar: bool = True, preview: bool = False
    ) -> None:
        """Write the label map as NIfTI, .nii or .nii.gz; beside it the sidecar, the maps that were asked for, and a picture.

        Raises OutputError where something is there and is not to be overwritten, or where it cannot be written, and MisuseError
        for another format.
        """
        path = Path(path)
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            raise MisuseError(f"{path}: drunet writes NAME.nii.gz or NAME.nii")
        prediction = self._segmentation.prediction
        wanted = {
            Extra.PREVIEW: preview,
            Extra.PROBABILITIES: prediction.probabilities is not None,
            Extra.UNCERTAINTY: prediction.uncertainty is not None,
        }
        target = Target(
            label_map=path,
            labels=self.labels,
            sidecar=sidecar,
            extras=frozenset(extra for extra, is_wanted in wanted.items() if is_wanted),
            overwrite=overwrite,
        )
        prepared = self._segmentation.prepared
        target.check(prepared.case.images if prepared.inputs else {})
        target.write(self._segmentation, self.document)


_LOG: Final = logging.getLogger("drunet_cli")


def _open_logged(weights: str) -> Checkpoint:
    from drunet_cli.weights import cache

    return cache.open_weights(weights)


def _check_numbers(least: int, **numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number >= least:  # nor NaN
            raise ValueError(f"{name} {number}: is to be {least} or more")


class Segmenter:
    """Segments cases with one or several sets of weights, on one device.

    Weights and engines are opened when the first case needs them, and kept. The settings are those of `drunet segment`, whose
    options messages name (flips is --tta flips, min_volume_ml is --min-volume, and so on):

    weights: a registered name, a file, or several of them, of whose probabilities the mean is taken.
    device: "auto", "cpu", "cuda", "cuda:1", "mps".
    precision: "auto", "float32", "bfloat16", "float16".
    engine: "auto", "torch", "onnxruntime".
    window: "full", "auto", or None: as the weights were trained.
    deterministic: equal bytes from run to run, on a GPU too.
    batch_size: slices at once. threads: of the CPU, by default those that are granted.
    flips: take the mean over the four in-plane flips.
    mc_samples: take the mean over so many samples with dropout on, drawn from `seed`. dropout: their rate, by default as
    the weights record it.
    probabilities, uncertainty: keep these maps too.
    min_volume_ml: smaller components of the whole tumour are removed. min_enhancing_ml: less of it becomes necrotic core.
    on_warning: told what a user should know, by default the logger "drunet_cli".
    open_weights: opens a set of weights by name; by default a download is told to that logger too.

    For one thread at a time. Raises MisuseError for settings that exclude one another, ValueError for those that cannot be.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = DEFAULT,
        *,
        device: str = "auto",
        precision: Precision | str = Precision.AUTO,
        engine: EngineName | str = EngineName.AUTO,
        window: WindowMode | str | None = None,
        deterministic: bool = False,
        batch_size: int | None = None,
        threads: int | None = None,
        flips: bool = False,
        mc_samples: int = 0,
        dropout: float | None = None,
        seed: int = 0,
        probabilities: bool = False,
        uncertainty: bool = False,
        min_volume_ml: float = 0.0,
        min_enhancing_ml: float = 0.0,
        on_warning: Callable[[str], None] = _LOG.warning,
        open_weights: Callable[[str], Checkpoint] = _open_logged,
    ) -> None:
        if dropout == 0:
            raise MisuseError("--dropout 0: samples differ only with a rate above 0")
        if (dropout is not None or seed) and mc_samples == 0:
            raise MisuseError("--dropout and --seed are of the samples; give --mc-samples N too")
        _check_numbers(1, batch_size=batch_size, threads=threads)
        _check_numbers(0, mc_samples=mc_samples, seed=seed, min_volume_ml=min_volume_ml, min_enhancing_ml=min_enhancing_ml)
        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout}: a rate is 0 or more, and below 1")
        several = [weights] if isinstance(weights, str | os.PathLike) else weights
        self.weights = tuple(os.fspath(each) for each in several)
        if not self.weights:
            raise ValueError("weights: name at least one set")
        check_device_name(device)
        self._devices = (device,)
        self._precision = Precision(precision)
        self._window = None if window is None else WindowMode(window)
        self._deterministic = deterministic
        self._batch_size = batch_size
        self.threads = threads or granted_cpus()
        self._flips = flips
        self._mc_samples = mc_samples
        self._dropout = dropout
        self.samples_as_recorded = mc_samples > 0 and dropout is None
        self._seed = seed
        self._probabilities = probabilities
        self._uncertainty = uncertainty
        self._postprocessing = Postprocessing(min_volume_ml=min_volume_ml, min_enhancing_ml=min_enhancing_ml)
        self._on_warning = on_warning
        self._open_weights = open_weights
        self._named_engine = EngineName(engine)
        self._engine = choose_engine(
            self._named_engine, device=self._devices[0], precision=self._precision, sampling=mc_samples > 0
        )

    def segment(
        self,
        *,
        t1: pipeline.Image,
        t1ce: pipeline.Image,
        t2: pipeline.Image,
        flair: pipeline.Image,
        affine: npt.ArrayLike | None = None,
        name: str | None = None,
        labels: Labels | str = Labels.BRATS2020,
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> SegmentedCase:
        """Segment one case: four NIfTI files, or four arrays [I, J, K] of one shape, background 0.

        affine: of arrays, 4 x 4, voxel indices to RAS millimetres. name: of the case, by default what the files share, else
        "case". labels: "brats2020" (enhancing tumour is 4) or "brats2023" (3). on_progress: called with (slices done, slices in
        all). Of several devices the first computes.

        Raises CaseError for images that cannot be segmented, WeightsError for weights that cannot be had, DeviceError for a
        device that is absent or too small, MisuseError where files and arrays are mixed or an affine is missing or too much,
        TypeError for an image that is neither path nor array.
        """
        labels = Labels(labels)
        prepared = pipeline.prepare_given(
            {Modality.FLAIR: flair, Modality.T1CE: t1ce, Modality.T1: t1, Modality.T2: t2}, affine, name=name
        )
        network = self.network
        segmentation = pipeline.segment(
            prepared,
            network.engines[0],
            plan=network.plan,
            postprocessing=network.postprocessing,
            on_progress=on_progress,
        )
        document = pipeline.describe(segmentation, network.engines[0][0], network.checkpoints, network.settings)
        kept = replace(segmentation, prepared=replace(prepared, slices=prepared.slices[:0].copy()))  # the largest part
        return SegmentedCase(kept, document, labels)

    def check(self) -> None:
        """Raise WeightsError for weights that cannot be had, before anything is read; the device is not tried."""
        for name in self.weights:
            check_available(name)

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The weights, downloaded if need be."""
        return tuple(self._open_weights(name) for name in self.weights)

    @cached_property
    def plan(self) -> Plan:
        """As asked for; the window else as the weights were trained. Raises MisuseError where these differ in it."""
        window = self._window
        if window is None:
            windows = {checkpoint.metadata.window for checkpoint in self.checkpoints}
            if len(windows) > 1:
                raise MisuseError("the weights were trained on different windows of the frame; choose by --window full or auto")
            window = WindowMode(windows.pop())
        return Plan(
            window=window,
            flips=self._flips,
            mc_samples=self._mc_samples,
            seed=self._seed,
            probabilities=self._probabilities,
            uncertainty=self._uncertainty,
        )

    @cached_property
    def precision(self) -> Precision:
        """As asked for; `auto` settled."""
        if self._precision is not Precision.AUTO:
            return self._precision
        return Precision.FLOAT32

    @cached_property
    def _where(self) -> list[str]:
        from drunet_cli.host import limit_openmp_spinning

        limit_openmp_spinning()
        return [settle_device(self._engine, device, on_warning=self._on_warning) for device in self._devices]

    @cached_property
    def dropout(self) -> Dropout | None:
        """Rates of the samples. Raises MisuseError for weights that record none, unless one is given."""
        if self._mc_samples == 0:
            return None
        return dropout_of(self.checkpoints, given=self._dropout)

    def making(self, labels: Labels) -> Making:
        """What a label map must have been made with to be the same, as far as it was decided."""
        settings = describe_settings(self.plan, self._postprocessing, self.dropout)
        decided = settings | {"precision": self.precision.value}
        if self._named_engine is not EngineName.AUTO:
            decided["engine"] = self._named_engine.value
        return Making(weights_sha256=[each.sha256 for each in self.checkpoints], labels=labels, settings=decided)

    @cached_property
    def network(self) -> Network:
        """The opened weights and engines. The device first: that it is absent is known before a download."""
        where = self._where
        rates = [0.0] * len(self.checkpoints) if self.dropout is None else self.dropout.rates
        return Network(
            checkpoints=self.checkpoints,
            engines=[
                [self._engine_of(each, device, rate) for each, rate in zip(self.checkpoints, rates, strict=True)]
                for device in where
            ],
            plan=self.plan,
            postprocessing=self._postprocessing,
            dropout=self.dropout,
            deterministic=self._deterministic,
        )

    def _engine_of(self, checkpoint: Checkpoint, device: str, dropout: float) -> Engine:
        return open_engine(
            self._engine,
            checkpoint,
            device=device,
            precision=self.precision,
            batch_size=self._batch_size,
            threads=self.threads,
            dropout=dropout,
            deterministic=self._deterministic,
            on_warning=self._on_warning,
        )
