"""Voxels, surfaces and lesions, against the packages, against plain renderings, and by hand."""

import itertools
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from drunet_cli.brats import TumourClass
from drunet_cli.evaluation.scores import (
    LesionCounts,
    LesionScores,
    Mask,
    Overlap,
    SpacingMm,
    border_hd95_mm,
    dice,
    lesion_scores,
    mask_of,
    overlap,
    surface_distances,
)
from tests.evaluation.make_reference_scores import lesionwise
from tests.evaluation.random_masks import SPACINGS_MM, masks, plainly
from tests.evaluation.random_pairs import random_pairs

STORED: Final[dict[str, Any]] = json.loads(Path(__file__).with_name("reference_scores.json").read_text())
PAIRS: Final = {pair.name: pair for pair in random_pairs()}
# Both sides compute in float64 and differed by no more than 3e-14 when the file was made.
TOLERANCE: Final = 1e-9

every_pair = pytest.mark.parametrize("name", PAIRS)


# Counts of voxels and their ratios


NOTHING = np.zeros((2, 3, 4), dtype=np.bool_)
FULL = ~NOTHING


def voxels_at(*indices: int) -> Mask:
    mask = NOTHING.copy()
    mask.flat[list(indices)] = True
    return mask


def test_the_stored_scores_are_of_these_very_pairs() -> None:
    assert {name: pair.checksum for name, pair in PAIRS.items()} == {
        name: stored["checksum"] for name, stored in STORED["pairs"].items()
    }


@every_pair
def test_ratios_are_those_of_medpy(name: str) -> None:
    counts = overlap(PAIRS[name].prediction, PAIRS[name].reference)
    for score in ("dice", "sensitivity", "specificity", "precision"):
        assert getattr(counts, score) == pytest.approx(STORED["pairs"][name]["packages"][score], abs=TOLERANCE)


@plainly
@given(masks(2))
def test_counts_are_those_of_sets_of_voxels(drawn: Any) -> None:
    predicted, true = ({tuple(voxel) for voxel in np.argwhere(mask)} for mask in drawn)
    counts = overlap(*drawn)
    assert counts == Overlap(
        true_positives=len(predicted & true),
        false_positives=len(predicted - true),
        false_negatives=len(true - predicted),
        true_negatives=drawn[0].size - len(predicted | true),
    )
    assert (counts.voxels, counts.reference_voxels, counts.dice) == (len(predicted), len(true), dice(*drawn))


@pytest.mark.parametrize(
    ("prediction", "reference", "ratios"),
    [
        (voxels_at(0, 1, 2, 3), voxels_at(2, 3, 4), (4 / 7, 2 / 3, 19 / 21, 2 / 4)),
        (NOTHING, NOTHING, (1, 1, 1, 1)),
        (voxels_at(5), NOTHING, (0, 0, 23 / 24, 0)),
        (NOTHING, voxels_at(5), (0, 0, 1, 0)),
        (FULL, FULL, (1, 1, 1, 1)),
        (voxels_at(*range(12)), FULL, (24 / 36, 0.5, 0, 1)),  # no background is left to find
    ],
)
def test_ratios_by_hand(prediction: Mask, reference: Mask, ratios: tuple[float, ...]) -> None:
    counts = overlap(prediction, reference)
    assert (counts.dice, counts.sensitivity, counts.specificity, counts.precision) == ratios
    assert dice(prediction, reference) == ratios[0]


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and a reference of shape \(2, 3, 1\)"):
        dice(NOTHING, NOTHING[:, :, :1])  # numpy would stretch the second


def test_a_mask_is_where_any_of_its_classes_is() -> None:
    class_map = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    assert mask_of(class_map, (TumourClass.NCR, TumourClass.ET)).tolist() == [[False, True], [False, True]]


# Distances between surfaces


UNIT: Final = (1.0, 1.0, 1.0)
BARE: Final = np.zeros((6, 6, 6), dtype=np.bool_)
CORNERS: Final = tuple(itertools.product((0.0, 1.0), repeat=3))

Point = tuple[float, ...]
Points = npt.NDArray[np.float64]


def with_voxels(*voxels: tuple[int, int, int], shape: tuple[int, int, int] = (6, 6, 6)) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def line(n: int) -> Mask:
    return with_voxels(*((i, 1, 1) for i in range(n)), shape=(12, 3, 3))


def area_mm2(mask: Mask, spacing_mm: SpacingMm = UNIT) -> float:
    return float(surface_distances(mask, mask, spacing_mm=spacing_mm).prediction_mm2.sum())


@every_pair
def test_distances_are_those_of_medpy_and_surface_distance(name: str) -> None:
    pair, stored = PAIRS[name], STORED["pairs"][name]["packages"]
    hd95_mm = border_hd95_mm(pair.prediction, pair.reference, spacing_mm=pair.spacing_mm)
    assert hd95_mm == pytest.approx(stored["hd95_mm"], abs=TOLERANCE)
    distances = surface_distances(pair.prediction, pair.reference, spacing_mm=pair.spacing_mm)
    assert distances.hd95_mm == pytest.approx(stored["surface_hd95_mm"], abs=TOLERANCE)
    scores = [distances.dice(tolerance_mm) for tolerance_mm in STORED["tolerances_mm"]]
    assert scores == pytest.approx(stored["surface_dice"], abs=TOLERANCE)


@plainly
@given(masks(2), SPACINGS_MM)
def test_distances_are_those_of_all_pairs(drawn: Any, spacing_mm: SpacingMm) -> None:
    borders = [border_of(mask) * spacing_mm for mask in drawn]
    hd95_mm = border_hd95_mm(*drawn, spacing_mm=spacing_mm)
    nearest = np.concatenate([nearest_mm(borders[0], borders[1]), nearest_mm(borders[1], borders[0])])
    expected = np.percentile(nearest, 95) if all(map(len, borders)) else math.inf if any(map(len, borders)) else 0
    assert hd95_mm == pytest.approx(expected)
    distances = surface_distances(*drawn, spacing_mm=spacing_mm)
    pieces = [pieces_of(mask, spacing_mm) for mask in drawn]
    both = [(*pieces[0], pieces[1][0]), (*pieces[1], pieces[0][0])]
    near = sum(float(mm2[nearest_mm(places, others) <= 1.1].sum()) for places, mm2, others in both)
    whole = sum(float(mm2.sum()) for _, mm2 in pieces)
    assert distances.dice(1.1) == pytest.approx(near / whole if whole else 1)  # no distance of these spacings is 1.1 mm
    farthest = [nearest_mm(places, others).max(initial=0) for places, _, others in both]
    assert max(distances.prediction_mm.max(initial=0), distances.reference_mm.max(initial=0)) == pytest.approx(max(farthest))


def border_of(mask: Mask) -> Points:
    """[N, 3]: voxels with a neighbour outside of the mask."""
    inside = {tuple(voxel) for voxel in np.argwhere(mask)}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
    at_border = [voxel for voxel in inside if any(tuple(np.add(voxel, step)) not in inside for step in steps)]
    return np.array(at_border, dtype=np.float64).reshape(-1, 3)


def pieces_of(mask: Mask, spacing_mm: SpacingMm) -> tuple[Points, Points]:
    """Places [N, 3] in mm and areas [N] of the pieces of a surface."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2))
    places = [place for place in np.ndindex(windows.shape[:3]) if len(set(windows[place].ravel().tolist())) == 2]
    areas = [triangles_mm2(tuple(map(bool, windows[place].ravel())), spacing_mm) for place in places]
    return np.array(places, dtype=np.float64).reshape(-1, 3) * spacing_mm, np.array(areas)


def nearest_mm(places: Points, others: Points) -> Points:
    """[N]: distance of each place to the nearest of the others; inf without any."""
    distances = np.linalg.norm(places[:, np.newaxis] - others[np.newaxis], axis=2)
    return np.asarray(distances.min(axis=1, initial=np.inf))


def test_the_random_pairs_meet_every_pattern_of_eight_voxels() -> None:
    patterns = set()
    for mask in itertools.chain.from_iterable((pair.prediction, pair.reference) for pair in PAIRS.values()):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2)).reshape(-1, 8)
        patterns |= set(np.packbits(windows, axis=1).ravel().tolist())
    assert len(patterns) == 256


def test_areas_are_those_of_marching_cubes() -> None:
    """Eight voxels in every pattern, with the 27 pieces in and around them."""
    spacing_mm = (0.7, 1.3, 2.1)
    for pattern in range(1, 256):
        mask = np.array([bool(pattern >> bit & 1) for bit in range(8)]).reshape(2, 2, 2)
        _, expected = pieces_of(mask, spacing_mm)
        assert area_mm2(mask, spacing_mm) == pytest.approx(expected.sum(), rel=1e-12), pattern  # float64


@cache
def triangles_mm2(is_inside: tuple[bool, ...], spacing_mm: SpacingMm) -> float:
    """Half-way along the edges, the fewer corners cut off, by the triangles with the largest area on a cube."""
    inside = list(itertools.compress(CORNERS, is_inside))
    outside = [corner for corner in CORNERS if corner not in inside]
    area = 0.0
    for group in joined(min(inside, outside, key=len)):
        largest = max(triangulations(outline(group)), key=lambda triangles: sum(area_of(each, UNIT) for each in triangles))
        area += sum(area_of(triangle, spacing_mm) for triangle in largest)
    return area


def joined(corners: list[Point]) -> list[list[Point]]:
    """Corners of the unit cube in groups that edges join."""
    groups: list[list[Point]] = []
    for corner in corners:
        touching = [group for group in groups if any(math.dist(corner, other) == 1 for other in group)]
        groups = [group for group in groups if group not in touching] + [[corner, *itertools.chain(*touching)]]
    return groups


def outline(group: list[Point]) -> list[Point]:
    """The middles of the edges that leave a group, in the order in which a walk along the cube's faces meets them."""
    left = [
        tuple((a + b) / 2 for a, b in zip(corner, other, strict=True))
        for corner, other in itertools.product(group, CORNERS)
        if other not in group and math.dist(corner, other) == 1
    ]
    walk = [left.pop()]
    while left:
        here = walk[-1]
        walk.append(next(point for point in left if any(a == b != 0.5 for a, b in zip(here, point, strict=True))))
        left.remove(walk[-1])
    return walk


def triangulations(polygon: list[Point]) -> Iterator[list[tuple[Point, Point, Point]]]:
    if len(polygon) < 3:
        yield []
    for split in range(1, len(polygon) - 1):
        triangle = polygon[0], polygon[split], polygon[-1]
        for one, other in itertools.product(triangulations(polygon[: split + 1]), triangulations(polygon[split:])):
            yield [triangle, *one, *other]


def area_of(triangle: tuple[Point, Point, Point], spacing_mm: SpacingMm) -> float:
    a, b, c = np.array(triangle) * spacing_mm
    return float(np.linalg.norm(np.cross(b - a, c - a)) / 2)


def test_hd95_by_area_takes_the_worse_direction_and_does_not_interpolate() -> None:
    distances = surface_distances(line(10), line(2), spacing_mm=UNIT)
    assert distances.reference_mm.max() == 0  # all of the short line's surface is the long one's too
    # The far end of the long line is 8 mm away, with 4 of 44 pieces but only 3 % of the area; next to it there are 4 at 7 mm.
    assert distances.hd95_mm == 7
    assert surface_distances(line(2), line(10), spacing_mm=UNIT).hd95_mm == 7


def test_a_distance_equal_to_the_tolerance_is_within_it_at_every_place() -> None:
    for start in range(20):
        one, other = (with_voxels((start + shift, 1, 1), shape=(30, 3, 3)) for shift in (0, 3))
        one[0, 0, 0] = other[0, 0, 0] = True  # so that the box begins at the same voxel
        assert surface_distances(one, other, spacing_mm=(0.1, 1.0, 1.0)).dice(3 * 0.1) == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "hd95_mm"),
    [
        (with_voxels((0, 1, 2)), BARE, math.inf),
        (BARE, with_voxels((0, 1, 2)), math.inf),
        (BARE, BARE, 0),
    ],
)
def test_empty_masks(prediction: Mask, reference: Mask, hd95_mm: float) -> None:
    distances = surface_distances(prediction, reference, spacing_mm=UNIT)
    assert border_hd95_mm(prediction, reference, spacing_mm=UNIT) == distances.hd95_mm == hd95_mm
    assert distances.dice(1000.0) == (hd95_mm == 0)


# Lesion-wise scores


EMPTY: Final = np.zeros((40, 20, 20), dtype=np.bool_)

Corner = tuple[int, int, int]


def box(start: Corner, size: Corner) -> Mask:
    mask = EMPTY.copy()
    mask[tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))] = True
    return mask


def cube(i: int, j: int = 8, k: int = 8) -> Mask:
    """64 mm3, above the threshold."""
    return box((i, j, k), (4, 4, 4))


def scores(prediction: Mask, reference: Mask, spacing_mm: SpacingMm = UNIT) -> LesionScores:
    return lesion_scores(prediction, reference, spacing_mm=spacing_mm)


@every_pair
def test_scores_are_those_of_the_published_procedure(name: str) -> None:
    pair, stored = PAIRS[name], STORED["pairs"][name]["lesionwise"]
    found = scores(pair.prediction, pair.reference, pair.spacing_mm)
    assert found.counts == LesionCounts(stored["true_positives"], stored["false_negatives"], stored["false_positives"])
    assert found.dice == pytest.approx(stored["dice"], abs=TOLERANCE)
    assert found.hd95_mm == pytest.approx(stored["hd95_mm"], abs=TOLERANCE)


@every_pair
def test_room_around_the_volume_changes_nothing(name: str) -> None:
    pair = PAIRS[name]
    roomy = [np.pad(mask, 7) for mask in (pair.prediction, pair.reference)]
    assert scores(roomy[0], roomy[1], pair.spacing_mm) == scores(pair.prediction, pair.reference, pair.spacing_mm)


@plainly
@given(masks(2), SPACINGS_MM)
def test_scores_are_those_of_a_plain_rendering(drawn: Any, spacing_mm: SpacingMm) -> None:
    """The steps of the published procedure, over whole volumes, a lesion at a time; Dice and HD95 have tests of their own."""

    def hd95(found: Mask, sought: Mask) -> float:
        return surface_distances(found, sought, spacing_mm=spacing_mm).hd95_mm

    prediction, reference = (np.kron(mask, np.ones((3, 3, 3), dtype=np.bool_)) for mask in drawn)
    expected = lesionwise(prediction, reference, spacing_mm, dice=dice, hd95=hd95)
    found = scores(prediction, reference, spacing_mm)
    assert vars(found.counts) == {name: expected.pop(name) for name in vars(found.counts)}
    assert {"dice": found.dice, "hd95_mm": found.hd95_mm} == pytest.approx(expected)


FAR_VOXEL: Final = box((38, 1, 1), (1, 1, 1))
BAR: Final = box((0, 8, 8), (16, 4, 4))
SMALL: Final = box((4, 8, 8), (5, 5, 2))  # 50 mm3


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (EMPTY, EMPTY, (1, 0, (0, 0, 0))),
        (cube(4), EMPTY, (0, 374, (0, 0, 1))),
        (EMPTY, cube(4), (0, 374, (0, 1, 0))),
        (cube(6), cube(4), (0.5, 2, (1, 0, 0))),
        # Lesions and components that touch at a corner are one; components with a gap between are two.
        (cube(4, 4, 4) | cube(8, 8, 8), cube(4, 4, 4) | cube(8, 8, 8), (1, 0, (1, 0, 0))),
        (box((30, 2, 2), (2, 2, 2)) | box((32, 4, 4), (2, 2, 2)), EMPTY, (0, 374, (0, 0, 1))),
        (box((30, 2, 2), (2, 2, 2)) | box((33, 2, 2), (2, 2, 2)), EMPTY, (0, 374, (0, 0, 2))),
        # A component that reaches two lesions is taken whole for both, each as if the other were not there: the far end of the
        # bar is 12 voxels beyond either.
        (BAR, cube(0) | cube(12), (2 * 64 / (256 + 64), 12, (2, 0, 0))),
        # All components that match a lesion count as one; the middle of the gap is 2 mm from both.
        (cube(0) | cube(8), box((0, 8, 8), (12, 4, 4)), (2 * 128 / (128 + 192), 2, (1, 0, 0))),
        # Every lesion and false positive has the same weight.
        (cube(0) | FAR_VOXEL, cube(0) | cube(20), (1 / 3, 2 * 374 / 3, (1, 1, 1))),
        # A lesion of 50 mm3 does not count, but what matches it is no false positive; one of 51 mm3 counts, and two of 32 mm3
        # that merge.
        (EMPTY, SMALL, (1, 0, (0, 0, 0))),
        (cube(4), SMALL, (1, 0, (0, 0, 0))),
        (cube(0), cube(0) | box((30, 3, 3), (2, 2, 2)), (1, 0, (1, 0, 0))),
        (EMPTY, box((4, 8, 8), (17, 3, 1)), (0, 374, (0, 1, 0))),
        (EMPTY, box((0, 8, 8), (2, 4, 4)), (1, 0, (0, 0, 0))),
        (EMPTY, box((0, 8, 8), (2, 4, 4)) | box((6, 8, 8), (2, 4, 4)), (0, 374, (0, 1, 0))),
    ],
)
def test_scores_by_hand(prediction: Mask, reference: Mask, expected: tuple[float, float, tuple[int, int, int]]) -> None:
    dice, hd95_mm, counts = expected
    found = scores(prediction, reference)
    assert found.counts == LesionCounts(*counts)
    assert (found.dice, found.hd95_mm) == pytest.approx((dice, hd95_mm))


@pytest.mark.parametrize(("start", "n_lesions"), [(7, 1), (10, 1), (11, 2), (20, 2)])
def test_lesions_merge_when_their_surroundings_meet(start: int, n_lesions: int) -> None:
    # The first cube ends at voxel 3. Three steps from it reach 6, and three steps back from 10 reach 7, which touches 6.
    reference = cube(0) | cube(start)
    assert scores(reference, reference).counts == LesionCounts(n_lesions, 0, 0)


@pytest.mark.parametrize(
    ("steps", "matches"),
    [
        ((3, 0, 0), True),
        ((4, 0, 0), False),
        ((3, 3, 0), True),  # three steps over an edge
        ((2, 2, 2), True),  # six faces, two at a time
        ((3, 2, 2), False),  # seven
        ((3, 3, 1), False),
    ],
)
def test_a_voxel_matches_within_three_steps_over_faces_or_edges(steps: Corner, matches: bool) -> None:
    near = EMPTY.copy()
    near[7 + steps[0], 11 + steps[1], 11 + steps[2]] = True  # from the cube's last voxel
    assert scores(near, cube(4)).counts == (LesionCounts(1, 0, 0) if matches else LesionCounts(0, 1, 1))


@pytest.mark.parametrize(("n", "counted"), [(10, False), (11, True)])
def test_the_threshold_is_a_volume_and_hd95_is_in_mm(n: int, counted: bool) -> None:
    found = scores(EMPTY, box((4, 8, 8), (n, 1, 1)), (1.0, 1.0, 5.0))
    assert found.counts.false_negatives == counted
    assert scores(cube(6), cube(4), (2.5, 1.0, 1.0)).hd95_mm == 5
