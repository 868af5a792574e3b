"""The networks of a segmentation, and the way of all slices of a case through them: the mean of all passes."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import N_CLASSES, REGIONS, ClassMap, TumourClass
from drunet_cli.host import cpu_grants, granted_cpus, limit_openmp_spinning
from drunet_cli.io.geometry import FRAME, Geometry
from drunet_cli.io.intensities import SliceStack
from drunet_cli.network.engine import (
    WINDOW_REST,
    WINDOW_STRIDE,
    Engine,
    EngineName,
    WindowMode,
    choose_engine,
    fastest_precision,
    open_engine,
    settle_device,
)
from drunet_cli.segmentation.settings import Settings
from drunet_cli.weights.checkpoint import Checkpoint, Metadata, Postprocessing
from drunet_cli.weights.registry import caveat_of, check_available

FloatArray = npt.NDArray[np.float32]

_LOG: Final = logging.getLogger("drunet_cli")
MOST_UNCERTAIN: Final = 100
_ONE_PASS: Final = Settings()
_SLICES_OF_PROBABILITIES: Final = 16  # at once: a slice takes a megabyte
_NO_FLIP: Final = (1, 1)
_FLIPS: Final = (_NO_FLIP, (-1, 1), (1, -1), (-1, -1))  # steps along X and Y
_CERTAIN: Final = np.eye(N_CLASSES, dtype=np.float32)[TumourClass.BACKGROUND]


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
        """The weights, downloaded if need be; a caveat about their results is a warning, once. Raises WeightsError."""
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
        self.settings.check_for(self._metadata)
        rates = self.settings.dropout_rates(self._metadata)
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
        """The part of a slice that the networks see. Opens the weights."""
        return self.settings.window_for(self._metadata)

    @property
    def postprocessing(self) -> Postprocessing:
        """The changes to the label map. Opens the weights."""
        return self.settings.postprocessing_for(self._metadata)

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as the sidecar has them. Opens the weights."""
        return self.settings.recorded(self._metadata)

    @property
    def compared(self) -> dict[str, Any]:
        """The settings that determine a label map, for a comparison. Opens the weights."""
        return self.settings.compared(self._metadata)

    @property
    def _metadata(self) -> list[Metadata]:
        return [checkpoint.metadata for checkpoint in self.checkpoints]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The result of the networks, in the case's own axes. The last three are there only if the settings ask for them.

    class_map: class indices [I, J, K]. probabilities: [I, J, K, 4], by class index. uncertainty: by region, [I, J, K], from 0,
    certain, to 100. entropy: [I, J, K], of the class probabilities, in nats.
    """

    class_map: ClassMap
    probabilities: npt.NDArray[np.float16] | None = None
    uncertainty: Mapping[str, npt.NDArray[np.uint8]] | None = None
    entropy: FloatArray | None = None


def predict(
    slices: SliceStack,
    geometry: Geometry,
    engines: Sequence[Engine],
    *,
    window: WindowMode,
    settings: Settings = _ONE_PASS,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Prediction:
    """Predict slices [Z, 240, 240, 4], each by itself; the batch size changes nothing but float32 rounding.

    engines: one for each set of weights; their probabilities are averaged. window: what they see of a slice. settings: flips,
    samples and the maps to keep. All slices without brain are alike: in full frames they are computed once; with windows they
    are background, and so is whatever lies outside a window.
    on_progress: called with (slices done, slices in all), every pass counted.
    """
    passes = _Passes(slices, engines, settings)
    maps = _Maps(len(slices), geometry, settings)
    n_done, n_all = 0, len(slices) * passes.n

    def advance(n_more: int) -> None:
        nonlocal n_done
        n_done += n_more
        on_progress(n_done, n_all)

    groups = windows_by_shape(slices, window)
    blank = np.ones(len(slices), dtype=bool)
    blank[[index for group in groups.values() for index in group]] = False
    if blank.any() and window is WindowMode.FULL:
        first = int(np.flatnonzero(blank)[0])
        _predict_group(passes, maps, {first: Window()}, np.flatnonzero(blank), lambda _: None)
    advance(int(np.count_nonzero(blank)) * passes.n)
    for group in groups.values():
        _predict_group(passes, maps, group, list(group), advance)
    return maps.prediction()


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of the frame [240, 240]: pixels x to x_stop, y to y_stop."""

    x: int = 0
    x_stop: int = FRAME
    y: int = 0
    y_stop: int = FRAME

    @property
    def shape(self) -> tuple[int, int]:
        """[X, Y]."""
        return self.x_stop - self.x, self.y_stop - self.y

    @property
    def pixels(self) -> tuple[slice, slice]:
        """An index into [X, Y, ...]."""
        return slice(self.x, self.x_stop), slice(self.y, self.y_stop)


def windows_by_shape(slices: SliceStack, mode: WindowMode) -> Mapping[tuple[int, int], Mapping[int, Window]]:
    """The window of every slice that has brain, by slice index, in groups of one shape, the largest shape first."""
    groups: dict[tuple[int, int], dict[int, Window]] = defaultdict(dict)
    for index in np.flatnonzero(slices.max(axis=(1, 2, 3))):
        window = window_of(_brain(slices[index])) if mode is WindowMode.AUTO else Window()
        groups[window.shape][int(index)] = window
    return dict(sorted(groups.items(), key=lambda item: -item[0][0] * item[0][1]))


def window_of(brain: npt.NDArray[np.bool_]) -> Window:
    """The smallest window that holds a brain [240, 240], of a size that the network takes, at a multiple of its stride.

    8 or 16 pixels of background around the brain left Dice with the truth as it was (ten cases, tests/benchmarks/windows.py).
    """
    return Window(*_interval(np.any(brain, axis=1)), *_interval(np.any(brain, axis=0)))


def _brain(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """The mask [X, Y] of pixels at which a channel of a slice [X, Y, 4] is above 0."""
    flair, t1ce, t1, t2 = np.moveaxis(pixels, 2, 0)
    return np.asarray((flair | t1ce | t1 | t2) > 0)  # numpy takes four times as long to reduce a last axis of four


def _interval(occupied: npt.NDArray[Any]) -> tuple[int, int]:
    indices = np.flatnonzero(occupied)
    start, stop = int(indices[0]), int(indices[-1]) + 1
    n_strides = -(-(stop - WINDOW_REST) // WINDOW_STRIDE)  # rounded up
    return start // WINDOW_STRIDE * WINDOW_STRIDE, n_strides * WINDOW_STRIDE + WINDOW_REST


class _Passes:
    """The passes of slices through the networks: one for each engine, flip and sample. n: passes of each slice."""

    def __init__(self, slices: SliceStack, engines: Sequence[Engine], settings: Settings) -> None:
        self._slices = slices
        self._engines = engines
        self._flips = _FLIPS if settings.flips else (_NO_FLIP,)
        self._n_samples = settings.mc_samples
        self._seed = settings.seed
        self.n = len(engines) * len(self._flips) * max(1, settings.mc_samples)

    @property
    def is_plain(self) -> bool:
        """Whether there is a single pass without dropout, so that an engine may give classes without probabilities."""
        return self.n == 1 and self._n_samples == 0

    def classes(self, windows: Mapping[int, Window], advance: Callable[[int], None]) -> ClassMap:
        """The most probable class [N, x, y] within the windows, in a single pass."""
        return self._engines[0].classes(self._pixels(windows), on_progress=advance)

    def mean_probabilities(self, windows: Mapping[int, Window], advance: Callable[[int], None]) -> FloatArray:
        """Class probabilities [N, x, y, 4] within the windows: the mean over all passes."""
        pixels = self._pixels(windows)
        total = np.zeros((*pixels.shape[:3], N_CLASSES), dtype=np.float32)
        for engine, (step_x, step_y), seeds in self._each(list(windows)):
            flipped = np.ascontiguousarray(pixels[:, ::step_x, ::step_y])
            probabilities = engine.probabilities(flipped, on_progress=advance, dropout_seeds=seeds)
            total += probabilities[:, ::step_x, ::step_y]
        total /= self.n
        return total

    def _pixels(self, windows: Mapping[int, Window]) -> SliceStack:
        return np.stack([self._slices[index][window.pixels] for index, window in windows.items()])

    def _each(self, indices: Sequence[int]) -> Iterator[tuple[Engine, tuple[int, int], list[int] | None]]:
        for n_engine, engine in enumerate(self._engines):
            for n_flip, flip in enumerate(self._flips):
                if self._n_samples == 0:
                    yield engine, flip, None
                for sample in range(self._n_samples):
                    yield engine, flip, [self._dropout_seed(n_engine, n_flip, sample, index) for index in indices]

    def _dropout_seed(self, *place: int) -> int:
        """The seed for one pass of one slice, whatever else is in its batch."""
        return int(np.random.SeedSequence([self._seed, *place]).generate_state(1, np.uint64)[0])


def _predict_group(
    passes: _Passes,
    maps: "_Maps",
    windows: Mapping[int, Window],
    places: Sequence[int] | npt.NDArray[np.intp],
    advance: Callable[[int], None],
) -> None:
    """Predict slices whose windows have one shape. places: where the results go; one result may go to many slices."""
    if passes.is_plain and maps.take_classes:
        classes = passes.classes(windows, advance)
        maps.put_classes(places, _framed(classes, windows, outside=np.uint8(TumourClass.BACKGROUND)))
        return
    indices = list(windows)
    for start in range(0, len(indices), _SLICES_OF_PROBABILITIES):
        some = {index: windows[index] for index in indices[start : start + _SLICES_OF_PROBABILITIES]}
        framed = _framed(passes.mean_probabilities(some, advance), some, outside=_CERTAIN)
        maps.put_probabilities(places[start : start + len(some)] if len(indices) > 1 else places, framed)


def _framed(parts: npt.NDArray[Any], windows: Mapping[int, Window], *, outside: Any) -> npt.NDArray[Any]:
    """Put the contents of windows, [N, x, y, ...], into frames [N, 240, 240, ...]."""
    frames = np.empty((len(parts), FRAME, FRAME, *parts.shape[3:]), dtype=parts.dtype)
    frames[...] = outside
    for frame, part, window in zip(frames, parts, windows.values(), strict=True):
        frame[window.pixels] = part
    return frames


class _Maps:
    """The maps that are asked for, filled slice by slice: arrays [Z, X, Y, ...], background where nothing is put."""

    def __init__(self, n_slices: int, geometry: Geometry, settings: Settings) -> None:
        self._geometry = geometry
        shape = (n_slices, geometry.x.size, geometry.y.size)
        self._classes = np.zeros(shape, dtype=np.uint8)
        self._probabilities = np.zeros((*shape, N_CLASSES), dtype=np.float16) if settings.probabilities else None
        if self._probabilities is not None:
            self._probabilities[...] = _CERTAIN
        self._uncertainty = {region: np.zeros(shape, dtype=np.uint8) for region in REGIONS} if settings.uncertainty else None
        self._entropy = np.zeros(shape, dtype=np.float32) if settings.uncertainty else None
        # A resampled case must come back as probabilities, since class indices cannot be interpolated.
        self.take_classes = not (settings.probabilities or settings.uncertainty or geometry.resampled)

    def put_classes(self, places: Sequence[int] | npt.NDArray[np.intp], frames: ClassMap) -> None:
        """Put class indices of frames [N, 240, 240], or of one frame for all places."""
        self._classes[places] = self._geometry.classes(frames)

    def put_probabilities(self, places: Sequence[int] | npt.NDArray[np.intp], frames: FloatArray) -> None:
        """Put class probabilities of frames [N, 240, 240, 4], or of one frame for all places."""
        planes = self._geometry.probabilities(frames)
        self._classes[places] = planes.argmax(axis=3)  # outside the frame all are 0, and the first of them is background
        if self._probabilities is None and self._uncertainty is None:
            return
        planes[..., TumourClass.BACKGROUND] += 1 - planes.sum(axis=3)  # outside the frame
        if self._probabilities is not None:
            self._probabilities[places] = planes
        if self._uncertainty is not None and self._entropy is not None:
            for region, classes in REGIONS.items():
                self._uncertainty[region][places] = region_uncertainty(planes[..., list(classes)].sum(axis=3))
            self._entropy[places] = entropy(planes)

    def prediction(self) -> Prediction:
        """The maps in the case's own axes."""

        def back(planes: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.asarray(self._geometry.turned_back(np.moveaxis(planes, 0, 2)))

        return Prediction(
            class_map=back(self._classes),
            probabilities=None if self._probabilities is None else back(self._probabilities),
            uncertainty=None if self._uncertainty is None else {name: back(map_) for name, map_ in self._uncertainty.items()},
            entropy=None if self._entropy is None else back(self._entropy),
        )


def region_uncertainty(probability: FloatArray) -> npt.NDArray[np.uint8]:
    """Turn the probability of a region, any shape, into percent of uncertainty: its entropy in bits, 100 where it is 1/2.

    0 to 100 is the range of the BraTS 2020 uncertainty task, which leaves the measure open (Mehta et al. 2022, QU-BraTS,
    arXiv:2112.10074).
    """
    inside = np.clip(probability, 0, 1)
    bits = -(_x_log_x(inside) + _x_log_x(1 - inside)) / np.float32(np.log(2))
    return np.asarray(np.rint(MOST_UNCERTAIN * np.clip(bits, 0, 1)), dtype=np.uint8)


def entropy(probabilities: FloatArray) -> FloatArray:
    """The entropy of class probabilities [..., 4] in nats: 0 where one of them is 1, ln 4 where all are equal."""
    return np.asarray(-_x_log_x(np.clip(probabilities, 0, 1)).sum(axis=-1)).clip(min=0)


def _x_log_x(x: FloatArray) -> FloatArray:
    return np.asarray(x * np.log(np.where(x > 0, x, 1)))
