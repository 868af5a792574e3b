"""Distances between surfaces, against the packages and by hand."""

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given

from drunet_cli.evaluation.scores import Mask, SpacingMm, border_hd95_mm, surface_distances
from tests.evaluation.random_masks import SPACINGS_MM, masks, plainly
from tests.evaluation.stored_scores import PAIRS, STORED, TOLERANCE, every_pair

UNIT: Final = (1.0, 1.0, 1.0)
EMPTY: Final = np.zeros((6, 6, 6), dtype=np.bool_)
CORNERS: Final = tuple(itertools.product((0.0, 1.0), repeat=3))
ROOT_3: Final = math.sqrt(3)

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


def test_the_surface_of_one_voxel_is_an_octahedron() -> None:
    assert area_mm2(with_voxels((2, 3, 1))) == pytest.approx(ROOT_3)  # 8 triangles with edges of the root of 1/2
    assert area_mm2(with_voxels((2, 3, 1)), (1.0, 2.0, 3.0)) == pytest.approx(7)  # 8 triangles of |(6, 3, 2)| / 8


def test_a_mask_that_fills_the_volume_has_its_surface_on_the_sides() -> None:
    area = ROOT_3 + 12 * math.sqrt(0.5) + 6  # 8 corners, 12 edges and 6 faces
    assert area_mm2(np.ones((2, 2, 2), dtype=np.bool_)) == pytest.approx(area)


def test_two_single_voxels_by_hand() -> None:
    one, other = with_voxels((1, 2, 2)), with_voxels((4, 2, 2))
    assert border_hd95_mm(one, other, spacing_mm=(2.0, 1.0, 1.0)) == 6
    distances = surface_distances(one, other, spacing_mm=(2.0, 1.0, 1.0))
    # Four of the eight corners of a voxel are 2 steps from the other voxel, and four 3.
    assert np.sort(distances.prediction_mm).tolist() == [4] * 4 + [6] * 4
    assert distances.hd95_mm == 6
    assert [distances.dice(tolerance) for tolerance in (3.9, 4, 5.9, 6)] == pytest.approx([0, 0.5, 0.5, 1])


def test_hd95_of_border_voxels_interpolates_between_all_distances() -> None:
    # 10 and 9 voxels: 18 distances of 0 and one of 2 mm; 0.95 * 18 = 17.1, a tenth of the way from the 18th to the 19th.
    assert border_hd95_mm(line(10), line(9), spacing_mm=(2.0, 1.0, 1.0)) == pytest.approx(0.2)


def test_hd95_by_area_takes_the_worse_direction_and_does_not_interpolate() -> None:
    distances = surface_distances(line(10), line(2), spacing_mm=UNIT)
    assert distances.reference_mm.max() == 0  # all of the short line's surface is the long one's too
    # The far end of the long line is 8 mm away, with 4 of 44 pieces but only 3 % of the area; next to it there are 4 at 7 mm.
    assert distances.hd95_mm == 7
    assert surface_distances(line(2), line(10), spacing_mm=UNIT).hd95_mm == 7


def test_inner_voxels_are_no_border() -> None:
    block = np.ones((5, 5, 5), dtype=np.bool_)
    shell = block.copy()
    shell[1:4, 1:4, 1:4] = False
    assert border_hd95_mm(block, shell, spacing_mm=UNIT) == 0  # the inner 27 of 125 would be 12 % of the distances


def test_voxels_on_the_side_of_the_volume_are_border() -> None:
    filled = np.ones((5, 5, 5), dtype=np.bool_)
    centre = with_voxels((2, 2, 2), shape=(5, 5, 5))
    # From the 98 voxels of the sides, and 1 back; the 8 corners are the farthest, and 8 % of these.
    assert border_hd95_mm(filled, centre, spacing_mm=UNIT) == pytest.approx(math.sqrt(12))


def test_a_distance_equal_to_the_tolerance_is_within_it_at_every_place() -> None:
    for start in range(20):
        one, other = (with_voxels((start + shift, 1, 1), shape=(30, 3, 3)) for shift in (0, 3))
        one[0, 0, 0] = other[0, 0, 0] = True  # so that the box begins at the same voxel
        assert surface_distances(one, other, spacing_mm=(0.1, 1.0, 1.0)).dice(3 * 0.1) == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "hd95_mm"),
    [(with_voxels((0, 1, 2)), EMPTY, math.inf), (EMPTY, with_voxels((0, 1, 2)), math.inf), (EMPTY, EMPTY, 0)],
)
def test_empty_masks(prediction: Mask, reference: Mask, hd95_mm: float) -> None:
    distances = surface_distances(prediction, reference, spacing_mm=UNIT)
    assert border_hd95_mm(prediction, reference, spacing_mm=UNIT) == distances.hd95_mm == hd95_mm
    assert distances.dice(1000.0) == (hd95_mm == 0)
