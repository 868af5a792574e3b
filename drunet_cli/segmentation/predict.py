"""All slices of a case through the network: windows, passes of which the mean is taken, and the clean-up after."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.brats import N_CLASSES, REGIONS, ClassMap, TumourClass
from drunet_cli.io.geometry import FRAME, Geometry, box_of
from drunet_cli.io.slices import SliceStack
from drunet_cli.network.engine import Engine, WindowMode

_STRIDE: Final = 32
_PAST_STRIDE: Final = 16


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
        """To index [X, Y, ...] with."""
        return slice(self.x, self.x_stop), slice(self.y, self.y_stop)


def windows_by_shape(slices: SliceStack, mode: WindowMode) -> Mapping[tuple[int, int], Mapping[int, Window]]:
    """Window of each slice that has brain, by its index, in groups of one shape, largest first."""
    groups: dict[tuple[int, int], dict[int, Window]] = defaultdict(dict)
    for index in np.flatnonzero(slices.max(axis=(1, 2, 3))):
        window = window_of(_brain(slices[index])) if mode is WindowMode.AUTO else Window()
        groups[window.shape][int(index)] = window
    return dict(sorted(groups.items(), key=lambda item: -item[0][0] * item[0][1]))


def window_of(brain: npt.NDArray[np.bool_]) -> Window:
    """The smallest window that holds a brain [240, 240].

    8 or 16 pixels of background around it left Dice with the truth as it was (ten cases, tests/benchmarks/windows.py).
    """
    return Window(*_interval(np.any(brain, axis=1)), *_interval(np.any(brain, axis=0)))


def _brain(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where one of the channels of a slice [X, Y, 4] is above 0."""
    flair, t1ce, t1, t2 = np.moveaxis(pixels, 2, 0)
    return np.asarray((flair | t1ce | t1 | t2) > 0)  # numpy takes four times as long to reduce a last axis of four


def _interval(occupied: npt.NDArray[Any]) -> tuple[int, int]:
    indices = np.flatnonzero(occupied)
    start, stop = int(indices[0]), int(indices[-1]) + 1
    return start // _STRIDE * _STRIDE, -(-(stop - _PAST_STRIDE) // _STRIDE) * _STRIDE + _PAST_STRIDE


FloatArray = npt.NDArray[np.float32]

_SLICES_OF_PROBABILITIES: Final = 16  # at once: a slice takes a megabyte
_NO_FLIP: Final = (1, 1)
_FLIPS: Final = (_NO_FLIP, (-1, 1), (1, -1), (-1, -1))  # steps along X and Y
_CERTAIN: Final = np.eye(N_CLASSES, dtype=np.float32)[TumourClass.BACKGROUND]
MOST_UNCERTAIN: Final = 100


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a case is predicted.

    window: what the network sees of a slice. flips: take the mean over the four in-plane flips. mc_samples: take the mean over
    so many samples with dropout on, drawn from `seed`; 0 without. probabilities, uncertainty: keep these maps too.
    """

    window: WindowMode
    flips: bool = False
    mc_samples: int = 0
    seed: int = 0
    probabilities: bool = False
    uncertainty: bool = False

    def n_passes(self, n_engines: int) -> int:
        """How often every slice goes through a network."""
        return n_engines * (len(_FLIPS) if self.flips else 1) * max(1, self.mc_samples)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was predicted, in the case's own axes.

    class_map: [I, J, K]. probabilities: float16 [I, J, K, 4], by class index. uncertainty: by region, uint8 [I, J, K], from 0,
    certain, to 100. entropy: float32 [I, J, K], of the class probabilities, in nats. The last three only where asked for.
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
    plan: Plan,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Prediction:
    """Predict slices [Z, 240, 240, 4], each for itself; the batch size changes nothing but float32 rounding.

    engines: one for each set of weights, whose mean probabilities are taken. Slices without any brain are all the same: of full
    frames they are computed once; with windows they, and whatever lies outside a window, are background.
    on_progress: called with (slices done, slices in all), every pass counted.
    """
    n_passes = plan.n_passes(len(engines))
    n_done, n_all = 0, len(slices) * n_passes

    def advance(n_more: int) -> None:
        nonlocal n_done
        n_done += n_more
        on_progress(n_done, n_all)

    maps = _Maps(len(slices), geometry, plan)
    groups = windows_by_shape(slices, plan.window)
    blank = np.ones(len(slices), dtype=bool)
    blank[[index for group in groups.values() for index in group]] = False
    run = _Run(slices, engines, plan)
    if blank.any() and plan.window is WindowMode.FULL:
        first = int(np.flatnonzero(blank)[0])
        run.fill(maps, {first: Window()}, np.flatnonzero(blank), lambda _: None)
    advance(int(np.count_nonzero(blank)) * n_passes)
    for group in groups.values():
        run.fill(maps, group, None, advance)
    return maps.prediction()


class _Run:
    """Slices, and what they go through."""

    def __init__(self, slices: SliceStack, engines: Sequence[Engine], plan: Plan) -> None:
        self._slices = slices
        self._engines = engines
        self._plan = plan

    def fill(
        self,
        maps: "_Maps",
        windows: Mapping[int, Window],
        targets: npt.NDArray[np.intp] | None,
        advance: Callable[[int], None],
    ) -> None:
        """Predict the slices that have these windows, all of one shape. targets: places for one slice in place of its own."""
        if self._plan.n_passes(len(self._engines)) == 1 and self._plan.mc_samples == 0 and maps.take_classes:
            classes = self._engines[0].classes(self._seen(windows), on_done=advance)
            framed = _framed(classes, windows, outside=np.uint8(TumourClass.BACKGROUND))
            maps.put_classes(list(windows) if targets is None else targets, framed)
            return
        indices = list(windows)
        for start in range(0, len(indices), _SLICES_OF_PROBABILITIES):
            some = {index: windows[index] for index in indices[start : start + _SLICES_OF_PROBABILITIES]}
            framed = _framed(self._mean(some, advance), some, outside=_CERTAIN)
            maps.put_probabilities(list(some) if targets is None else targets, framed)

    def _seen(self, windows: Mapping[int, Window]) -> SliceStack:
        return np.stack([self._slices[index][window.pixels] for index, window in windows.items()])

    def _mean(self, windows: Mapping[int, Window], advance: Callable[[int], None]) -> FloatArray:
        """Class probabilities [N, x, y, 4] within the windows: the mean over all passes."""
        seen = self._seen(windows)
        total = np.zeros((*seen.shape[:3], N_CLASSES), dtype=np.float32)
        for engine, (step_x, step_y), seeds in self._passes(list(windows)):
            flipped = np.ascontiguousarray(seen[:, ::step_x, ::step_y])
            probabilities = engine.probabilities(flipped, on_done=advance, dropout_seeds=seeds)
            total += probabilities[:, ::step_x, ::step_y]
        total /= self._plan.n_passes(len(self._engines))
        return total

    def _passes(self, indices: Sequence[int]) -> Iterator[tuple[Engine, tuple[int, int], list[int] | None]]:
        for n_engine, engine in enumerate(self._engines):
            for n_flip, flip in enumerate(_FLIPS if self._plan.flips else (_NO_FLIP,)):
                if self._plan.mc_samples == 0:
                    yield engine, flip, None
                for sample in range(self._plan.mc_samples):
                    yield engine, flip, [self._seed(n_engine, n_flip, sample, index) for index in indices]

    def _seed(self, *place: int) -> int:
        """Of the dropout of one pass of one slice, whatever it is computed beside."""
        return int(np.random.SeedSequence([self._plan.seed, *place]).generate_state(1, np.uint64)[0])


class _Maps:
    """What a plan asks for, slice by slice: arrays [Z, X, Y, ...], background where nothing is put."""

    def __init__(self, n_slices: int, geometry: Geometry, plan: Plan) -> None:
        self._geometry = geometry
        shape = (n_slices, geometry.x.size, geometry.y.size)
        self._classes = np.zeros(shape, dtype=np.uint8)
        self._probabilities = np.zeros((*shape, N_CLASSES), dtype=np.float16) if plan.probabilities else None
        if self._probabilities is not None:
            self._probabilities[...] = _CERTAIN
        self._uncertainty = {region: np.zeros(shape, dtype=np.uint8) for region in REGIONS} if plan.uncertainty else None
        self._entropy = np.zeros(shape, dtype=np.float32) if plan.uncertainty else None
        # Resampled, probabilities and not class indices must come back.
        self.take_classes = not (plan.probabilities or plan.uncertainty or geometry.resampled)

    def put_classes(self, indices: Sequence[int] | npt.NDArray[np.intp], frames: ClassMap) -> None:
        """Class indices of frames [N, 240, 240], or one frame for all."""
        self._classes[indices] = self._geometry.classes(frames)

    def put_probabilities(self, indices: Sequence[int] | npt.NDArray[np.intp], frames: FloatArray) -> None:
        """Class probabilities of frames [N, 240, 240, 4], or one frame for all."""
        planes = self._geometry.probabilities(frames)
        self._classes[indices] = planes.argmax(axis=3)  # outside the frame all are 0, of which the first is the background
        if self._probabilities is None and self._uncertainty is None:
            return
        planes[..., TumourClass.BACKGROUND] += 1 - planes.sum(axis=3)  # what lies outside the frame
        if self._probabilities is not None:
            self._probabilities[indices] = planes
        if self._uncertainty is not None and self._entropy is not None:
            for region, classes in REGIONS.items():
                self._uncertainty[region][indices] = region_uncertainty(planes[..., list(classes)].sum(axis=3))
            self._entropy[indices] = entropy(planes)

    def prediction(self) -> Prediction:
        """All of it, turned back."""

        def back(planes: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.asarray(self._geometry.turned_back(np.moveaxis(planes, 0, 2)))

        return Prediction(
            class_map=back(self._classes),
            probabilities=None if self._probabilities is None else back(self._probabilities),
            uncertainty=None if self._uncertainty is None else {name: back(map_) for name, map_ in self._uncertainty.items()},
            entropy=None if self._entropy is None else back(self._entropy),
        )


def region_uncertainty(probability: FloatArray) -> npt.NDArray[np.uint8]:
    """Of a region's probability, any shape, in whole percent: its entropy in bits, 0 where it is 0 or 1, 100 where it is 1/2.

    0 to 100 is the range of the BraTS 2020 uncertainty task, which leaves the measure open (Mehta et al. 2022, QU-BraTS,
    arXiv:2112.10074).
    """
    inside = np.clip(probability, 0, 1)
    bits = -(_x_log_x(inside) + _x_log_x(1 - inside)) / np.float32(np.log(2))
    return np.asarray(np.rint(MOST_UNCERTAIN * np.clip(bits, 0, 1)), dtype=np.uint8)


def entropy(probabilities: FloatArray) -> FloatArray:
    """Of class probabilities [..., 4], in nats: 0 where one is 1, ln 4 where all are equal."""
    return np.asarray(-_x_log_x(np.clip(probabilities, 0, 1)).sum(axis=-1)).clip(min=0)


def _x_log_x(x: FloatArray) -> FloatArray:
    return np.asarray(x * np.log(np.where(x > 0, x, 1)))


def _framed(parts: npt.NDArray[Any], windows: Mapping[int, Window], *, outside: Any) -> npt.NDArray[Any]:
    """Put what windows hold, [N, x, y, ...], into frames [N, 240, 240, ...]."""
    frames = np.empty((len(parts), FRAME, FRAME, *parts.shape[3:]), dtype=parts.dtype)
    frames[...] = outside
    for frame, part, window in zip(frames, parts, windows.values(), strict=True):
        frame[window.pixels] = part
    return frames


_TOUCHING: Final = np.ones((3, 3, 3), dtype=bool)  # 26 neighbours: by a face, an edge or a corner


@dataclass(frozen=True, kw_only=True)
class Postprocessing:
    """What to do, 0 for nothing.

    min_volume_ml: components of the whole tumour below it become background.
    min_enhancing_ml: enhancing tumour that is less in all becomes NCR, as in Isensee et al., nnU-Net for Brain Tumor
    Segmentation (BrainLes 2020, arXiv:2011.00848): of a case without any, a single false voxel makes BraTS' Dice 0.
    """

    min_volume_ml: float = 0.0
    min_enhancing_ml: float = 0.0


NO_POSTPROCESSING: Final = Postprocessing()


@dataclass(frozen=True)
class Postprocessed:
    """Class indices, any shape, and what was done to them: components and voxels removed, voxels turned from ET to NCR."""

    class_map: ClassMap
    components_removed: int = 0
    voxels_removed: int = 0
    enhancing_to_ncr: int = 0

    def described(self) -> dict[str, Any]:
        """For the sidecar."""
        return {
            "components_removed": self.components_removed,
            "voxels_removed": self.voxels_removed,
            "voxels_enhancing_to_ncr": self.enhancing_to_ncr,
        }


def postprocess(class_map: ClassMap, settings: Postprocessing, *, voxel_ml: float) -> Postprocessed:
    """Class indices [I, J, K] after what the settings ask for, components first. The map that was given stays as it is."""
    result = Postprocessed(class_map)
    if settings.min_volume_ml > 0:
        result = _without_small_components(class_map, settings.min_volume_ml / voxel_ml)
    if settings.min_enhancing_ml == 0:
        return result
    enhancing: npt.NDArray[np.bool_] = result.class_map == TumourClass.ET
    n_enhancing = int(np.count_nonzero(enhancing))
    if 0 < n_enhancing < _least(settings.min_enhancing_ml / voxel_ml):
        turned = np.where(enhancing, np.uint8(TumourClass.NCR), result.class_map)
        result = Postprocessed(turned, result.components_removed, result.voxels_removed, n_enhancing)
    return result


def _without_small_components(class_map: ClassMap, least_voxels: float) -> Postprocessed:
    box = box_of(class_map != TumourClass.BACKGROUND)
    if box is None:
        return Postprocessed(class_map)
    components, n_components = ndimage.label(class_map[box], structure=_TOUCHING)
    sizes = np.bincount(components.ravel(), minlength=n_components + 1)
    small = sizes < _least(least_voxels)
    small[0] = False
    if not small.any():
        return Postprocessed(class_map)
    kept = class_map.copy()
    kept[box][small[components]] = TumourClass.BACKGROUND
    return Postprocessed(kept, int(np.count_nonzero(small)), int(sizes[small].sum()))


def _least(voxels: float) -> float:
    """A volume that amounts to a whole number of voxels but for rounding is that number."""
    return round(voxels) if abs(voxels - round(voxels)) < 1e-6 * max(1.0, voxels) else voxels
