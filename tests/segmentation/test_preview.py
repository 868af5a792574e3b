"""The preview: looked at as cuts, as the words that are written, and as the pixels of the picture."""

import io
import itertools
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image, features
from scipy.spatial.transform import Rotation

from drunet_cli.brats import CLASS_COLOURS, ClassMap, Modality, TumourClass, volumes_ml, voxel_counts
from drunet_cli.errors import MisuseError
from drunet_cli.io.png import Canvas, check_drawable, fitted, text_width
from drunet_cli.segmentation.preview import (
    Cut,
    Plane,
    draw_preview,
    largest_cuts,
    outlines,
    stretched,
    surrounded_specks,
)
from tests.support import AXCODES

Voxels = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Words = list[tuple[str, tuple[int, int]]]

NCR, ED, ET = TumourClass.NCR, TumourClass.ED, TumourClass.ET
RAS: Final = np.eye(4)
OPPOSITES: Final = [("L", "R"), ("R", "L"), ("A", "P"), ("P", "A"), ("S", "I"), ("I", "S")]
# Where the panels lie in the picture, as the layout has it: cells of 472 pixels, within which the image takes up to 416.
SIZE: Final = (1496, 1244)
LEFT: Final = {Plane.AXIAL: 24, Plane.CORONAL: 512, Plane.SAGITTAL: 1000}
TOP: Final = {Modality.FLAIR: 100, Modality.T1CE: 588}
CELL: Final = 472
IMAGE: Final = 416
PANELS: Final = list(itertools.product(LEFT, TOP))


def brain(*shape: int, seed: int = 0) -> Voxels:
    """Every voxel is brain, and each has an intensity of its own."""
    return np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(np.int32) + 1


def lesion(shape: tuple[int, ...], region: tuple[int | slice, ...], tumour_class: TumourClass = ET) -> ClassMap:
    class_map = np.zeros(shape, dtype=np.uint8)
    class_map[region] = tumour_class
    return class_map


def flat_preview(class_map: ClassMap, *, affine: Affine = RAS, **options: Any) -> bytes:
    """Over a brain of one intensity, which is drawn in the middle grey. options: those of draw_preview."""
    volumes = volumes_ml(voxel_counts(class_map), abs(np.linalg.det(affine[:3, :3])) / 1000)
    image = np.full(class_map.shape, 7, dtype=np.int16)
    return draw_preview(image, image, class_map, affine=affine, **{"name": "case", "volumes_ml": volumes, **options})


def pixels(png: bytes) -> Pixels:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def of_colour(picture: Pixels, colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    return np.asarray((picture == colour).all(axis=2))


def cell(picture: Pixels, plane: Plane, modality: Modality) -> Pixels:
    return picture[TOP[modality] :, LEFT[plane] :][:CELL, :CELL]


def stored_as(orientation: str, voxels: Voxels, affine: Affine) -> tuple[Voxels, Affine]:
    """The same volume, whose axes point R, A, S, with its axes stored otherwise."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    return np.ascontiguousarray(apply_orientation(voxels, turn)), affine @ inv_ornt_aff(turn, voxels.shape)


def cuts(image: Voxels, class_map: ClassMap, affine: Affine = RAS) -> dict[Plane, Cut]:
    return {cut.plane: cut for cut in largest_cuts({Modality.FLAIR: image}, class_map, affine=affine)}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    """What is written meanwhile, and where."""
    seen: Words = []
    write = Canvas.text

    def remember(canvas: Canvas, place: tuple[int, int], text: str, **options: Any) -> None:
        seen.append((text, place))
        write(canvas, place, text, **options)

    monkeypatch.setattr(Canvas, "text", remember)
    return seen


# The sides towards which a corner lies in a volume whose axes point R, A, S.
@pytest.mark.parametrize(
    ("corner", "sides", "orientation"),
    [((3, 26, 26), "LAS", "RAS"), ((26, 3, 3), "RPI", "LPS"), ((3, 3, 26), "LPS", "SAL"), ((26, 26, 3), "RAI", "PIR")],
)
def test_a_lesion_lies_towards_the_letters_of_its_side(
    corner: tuple[int, int, int], sides: str, orientation: str, words: Words
) -> None:
    class_map, affine = stored_as(orientation, lesion((30, 30, 30), tuple(slice(i - 2, i + 3) for i in corner)), RAS)
    picture = pixels(flat_preview(class_map, affine=affine))
    for plane, modality in PANELS:
        rows, columns = np.nonzero(of_colour(cell(picture, plane, modality), CLASS_COLOURS[ET]))
        here = np.array([columns.mean() + LEFT[plane], rows.mean() + TOP[modality]])
        places = {
            letter: np.array(place)
            for letter, place in words
            if letter in tuple("RLAPSI") and (np.abs(np.array(place) - (LEFT[plane] + 236, TOP[modality] + 236)) <= 236).all()
        }
        assert len(places) == 4
        for near, far in OPPOSITES:
            if near in sides and near in places:
                assert np.linalg.norm(here - places[near]) < np.linalg.norm(here - places[far])


def test_letters_stand_where_radiologists_have_them(words: Words) -> None:
    flat_preview(lesion((30, 30, 30), (15, 15, 15)))
    letters = [(letter, place) for letter, place in words if letter in tuple("RLAPSI")]
    for plane, (top, bottom, left, right) in {
        Plane.AXIAL: ("A", "P", "R", "L"),
        Plane.CORONAL: ("S", "I", "R", "L"),
        Plane.SAGITTAL: ("S", "I", "A", "P"),
    }.items():
        for modality in TOP:
            x, y = LEFT[plane] + CELL // 2, TOP[modality] + CELL // 2
            away = IMAGE // 2 + 14
            expected = {(top, (x, y - away)), (bottom, (x, y + away)), (left, (x - away, y)), (right, (x + away, y))}
            assert expected <= set(letters)
    assert len(letters) == 24


@pytest.mark.parametrize("orientation", AXCODES)
def test_cuts_are_the_same_however_the_case_is_stored(orientation: str) -> None:
    affine = np.diag([1.0, 2.0, 3.5, 1.0])
    affine[:3, 3] = -20, 7, 11.25
    image, class_map = brain(9, 8, 7), lesion((9, 8, 7), (slice(1, 4), slice(2, 7), slice(4, 6)))
    class_map[7, 1, 1] = NCR
    turned_image, turned_affine = stored_as(orientation, image, affine)
    turned_classes, _ = stored_as(orientation, class_map, affine)
    expected = cuts(image, class_map, affine)
    for plane, cut in cuts(turned_image, turned_classes, turned_affine).items():
        np.testing.assert_array_equal(cut.greys[Modality.FLAIR], expected[plane].greys[Modality.FLAIR])
        np.testing.assert_array_equal(cut.classes, expected[plane].classes)
        assert (cut.height_mm, cut.width_mm) == (expected[plane].height_mm, expected[plane].width_mm)
        assert cut.position_mm == pytest.approx(expected[plane].position_mm, abs=1e-9)  # rounding of float64


def test_an_oblique_case_is_cut_along_its_nearest_axes() -> None:
    affine = RAS.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -15, 25], degrees=True).as_matrix()
    image, class_map = brain(9, 8, 7), lesion((9, 8, 7), (slice(1, 4), 2, 3))
    straight, oblique = cuts(image, class_map), cuts(image, class_map, affine)
    for plane in Plane:
        np.testing.assert_array_equal(oblique[plane].classes, straight[plane].classes)
        np.testing.assert_array_equal(oblique[plane].greys[Modality.FLAIR], straight[plane].greys[Modality.FLAIR])
        assert oblique[plane].height_mm == pytest.approx(straight[plane].height_mm)
        assert oblique[plane].width_mm == pytest.approx(straight[plane].width_mm)


def test_every_cut_goes_through_the_largest_section_of_the_tumour() -> None:
    class_map = lesion((20, 20, 20), (slice(4, 9), slice(3, 8), slice(2, 7)), ED)  # 25 voxels in every plane
    class_map[6, 5, :7] = NCR
    class_map[15, 15, 15] = ET
    found = cuts(brain(20, 20, 20), class_map)
    assert (found[Plane.SAGITTAL].position_mm, found[Plane.CORONAL].position_mm) == (6, 5)
    assert found[Plane.AXIAL].position_mm == 4  # of five with as many voxels the middle one
    assert {plane: np.count_nonzero(cut.classes) for plane, cut in found.items()} == {
        Plane.AXIAL: 25,
        Plane.CORONAL: 27,
        Plane.SAGITTAL: 27,
    }


def test_cuts_show_the_brain_and_all_of_the_tumour_but_no_empty_margin() -> None:
    image = np.zeros((30, 30, 30), dtype=np.int16)
    image[10:20, 8:24, 5:18] = brain(10, 16, 13)
    class_map = lesion((30, 30, 30), (slice(15, 22), 10, 10))  # it reaches out of the brain
    found = cuts(image, class_map)
    assert [cut.classes.shape for cut in found.values()] == [(16, 12), (13, 12), (13, 16)]


def size_of_image(picture: Pixels, plane: Plane, modality: Modality) -> tuple[int, int]:
    """Rows and columns that are mostly of the middle grey; letters have a few such pixels too."""
    grey = of_colour(cell(picture, plane, modality), (128, 128, 128))
    return tuple(int(np.count_nonzero(np.count_nonzero(grey, axis=axis) > 100)) for axis in (1, 0))  # type: ignore[return-value]


@pytest.mark.parametrize(("shape", "spacing_mm"), [((40, 40, 8), (1, 1, 5)), ((8, 40, 80), (5, 1, 0.5))])
def test_a_millimetre_is_a_millimetre_in_every_direction(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> None:
    """40 mm in every direction make a square in every cut."""
    picture = pixels(flat_preview(np.zeros(shape, dtype=np.uint8), affine=np.diag([*spacing_mm, 1.0])))
    for plane, modality in PANELS:
        assert size_of_image(picture, plane, modality) == (IMAGE, IMAGE)


def test_all_cuts_have_one_scale() -> None:
    """A brain of 20 x 40 x 30 mm, of which the longest side fills a panel."""
    picture = pixels(flat_preview(np.zeros((20, 40, 30), dtype=np.uint8)))
    expected = {Plane.AXIAL: (416, 208), Plane.CORONAL: (312, 208), Plane.SAGITTAL: (312, 416)}
    for plane, modality in PANELS:
        assert size_of_image(picture, plane, modality) == expected[plane]


@pytest.mark.parametrize("tumour_class", [NCR, ED, ET])
@pytest.mark.parametrize("shape", [(200, 200, 20), (900, 30, 30)])  # a voxel takes 2 pixels, or less than half of one
def test_a_lesion_of_one_voxel_is_seen_in_every_panel(shape: tuple[int, int, int], tumour_class: TumourClass) -> None:
    picture = pixels(flat_preview(lesion(shape, (11, 12, 13), tumour_class)))
    for plane, modality in PANELS:
        panel = cell(picture, plane, modality)
        assert np.count_nonzero(of_colour(panel, CLASS_COLOURS[tumour_class])) >= 16  # a square of 5 pixels, perhaps hollow
        assert np.count_nonzero(of_colour(panel, (255, 255, 255))) > 100  # the ring that points to it


def test_a_lone_speck_has_its_outline_around_it() -> None:
    classes = np.zeros((20, 20), dtype=np.uint8)
    classes[8:10, 8:10] = ET
    expected = np.zeros_like(classes)
    expected[6:12, 6:12] = ET
    expected[8:10, 8:10] = 0
    np.testing.assert_array_equal(outlines(surrounded_specks(classes, 4, 2), 2), expected)


def test_an_outline_lies_within_its_class_and_leaves_the_inside_free() -> None:
    classes = np.zeros((20, 20), dtype=np.uint8)
    classes[3:15, 4:18] = ED
    expected = classes.copy()
    expected[5:13, 6:16] = 0
    np.testing.assert_array_equal(outlines(classes, 2), expected)


def test_of_nested_classes_the_inner_one_has_the_line() -> None:
    row = np.array([0, ED, ED, ED, ED, ED, ET, ET, ET, ET, ET, ET, NCR, NCR, NCR, NCR], dtype=np.uint8)
    seen = outlines(np.tile(row, (20, 1)), 2)[10]
    assert seen.tolist() == [0, ED, ED, 0, 0, 0, ET, ET, 0, 0, 0, ET, NCR, NCR, NCR, NCR]  # the last two meet the border


def test_no_labelled_voxel_is_lost_where_labels_are_made_smaller() -> None:
    for row, column in itertools.product(range(11), range(7)):
        classes = np.zeros((11, 7), dtype=np.uint8)
        classes[row, column] = NCR
        assert np.count_nonzero(stretched(classes, (4, 3))) == 1


def test_class_colours_stand_only_on_the_classes_and_in_the_legend() -> None:
    class_map = lesion((40, 40, 40), (slice(5, 20), slice(8, 25), slice(9, 30)), ED)
    class_map[8:15, 12:20, 12:25] = ET
    picture = pixels(flat_preview(class_map))
    for colour, expected in ((CLASS_COLOURS[ED], True), (CLASS_COLOURS[ET], True), (CLASS_COLOURS[NCR], False)):
        for plane, modality in PANELS:
            assert of_colour(cell(picture, plane, modality), colour).any() == expected
        legend = of_colour(picture, colour)[1060:]
        assert np.count_nonzero(legend) == 22 * 22  # a swatch


def test_an_empty_result_shows_the_middle_and_says_so(words: Words) -> None:
    empty = np.zeros((31, 21, 11), dtype=np.uint8)
    picture = pixels(flat_preview(empty))
    assert "No tumour was found" in [text for text, _ in words]
    assert {"sagittal, x = 15 mm", "coronal, y = 10 mm", "axial, z = 5 mm"} <= {text for text, _ in words}
    assert not any(of_colour(picture, colour).any() for colour in CLASS_COLOURS.values())


# What is asked for beside the class map, and words of the picture.
WORDS: Final[dict[str, tuple[dict[str, Any], set[str]]]] = {
    "coordinates of the scanner": (
        {"affine": np.array([[-1.0, 0, 0, 40], [0, -1, 0, 50], [0, 0, 2, -10], [0, 0, 0, 1]])},
        {"sagittal, x = 28 mm", "coronal, y = 37 mm", "axial, z = 18 mm"},
    ),
    "the volume of every class and region": (
        {"volumes_ml": {"NCR": 0.0, "ED": 12.34, "ET": 0.021, "WT": 12.361, "TC": 0.021}},
        {
            "NCR  necrotic core  0.0 mL",
            "ED  oedema  12.3 mL",
            "ET  enhancing tumour  0.021 mL",
            "WT  whole tumour  12.4 mL",
            "TC  tumour core  0.021 mL",
        },
    ),
    "a warning": ({"warnings": ["thick slices"]}, {"Warning: thick slices"}),
    "an image without its folder": ({"warnings": ["/a b/c/t1.nii.gz: thick"]}, {"Warning: t1.nii.gz: thick"}),
    "the number of others": (
        {"warnings": ["thick slices", "no orientation", "resampled"]},
        {"Warning: thick slices (and 2 more)"},
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_picture_tells_in_words(name: str, words: Words) -> None:
    options, expected = WORDS[name]
    flat_preview(lesion((30, 30, 30), (12, 13, 14)), **options)
    assert expected <= {text for text, _ in words}


@pytest.mark.parametrize(
    ("caveat", "expected"),
    [("", "Research use only; not a medical device."), ("weights w: for trying", "Weights w: for trying.")],
)
def test_the_foot_says_what_the_weights_are_for_in_place_of_research_use(caveat: str, expected: str, words: Words) -> None:
    flat_preview(lesion((24, 24, 24), (3, 3, 3)), caveat=caveat)
    assert words[-1][0] == expected


@pytest.mark.parametrize("shape", [(24, 24, 24), (900, 30, 30), (30, 30, 1)])
def test_the_picture_has_one_size_and_nothing_is_cut_off(shape: tuple[int, int, int]) -> None:
    picture = pixels(flat_preview(lesion(shape, (2, 2, 0)), name="W" * 200, warnings=["W" * 300, "another"]))
    assert picture.shape == (*reversed(SIZE), 3)
    for border in (picture[:20], picture[-20:], picture[:, :20], picture[:, -20:]):
        assert not border.any()


def test_a_name_in_other_letters_or_too_long_is_still_told_by_its_two_ends() -> None:
    assert fitted("Müller_患者\n01", 30, 1000) == "Muller_???01"
    shortened = fitted("begin_" + "x" * 200 + "_end", 30, 600)
    assert shortened.startswith("begin_x")
    assert shortened.endswith("x_end")
    assert "..." in shortened
    assert 570 < text_width(shortened, 30) <= 600  # no letter is wider than 30


def test_contrast_runs_between_percentiles_of_the_brain() -> None:
    """Intensities 1 to 1000, one voxel each, and many of background; the percentiles are 0.5 % and 99.5 % of 1000."""
    image = np.zeros((30, 10, 10), dtype=np.int32)
    image[10:20] = np.arange(1, 1001).reshape(10, 10, 10)
    image[19, 9, 9] = 10**9
    class_map = lesion(image.shape, (14, slice(2, 8), 5))
    class_map[2, 0, 0] = ET  # so that the cuts show background too
    greys = cuts(image, class_map)[Plane.SAGITTAL].greys[Modality.FLAIR]
    values = image[14].T[::-1, ::-1]
    expected = np.rint((values - 5.995) / (995.005 - 5.995) * 255)  # numpy interpolates between the ranks
    np.testing.assert_array_equal(greys, expected)


def test_an_image_without_any_brain_is_black() -> None:
    for cut in cuts(np.zeros((6, 6, 6)), lesion((6, 6, 6), (3, 3, 3))).values():
        assert not cut.greys[Modality.FLAIR].any()


# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision deficiency, IEEE TVCG 15 (2009),
# severity 1.0: linear sRGB as somebody sees it who lacks one kind of cone.
VISION: Final = {
    "trichromat": RAS[:3, :3],
    "protanope": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranope": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanope": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
# sRGB to CIE XYZ (IEC 61966-2-1); its rows sum to the white point D65.
SRGB_TO_XYZ: Final = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def seen_as(colour: tuple[int, int, int], vision: str) -> npt.NDArray[np.float64]:
    """CIE L*a*b* of an sRGB colour, as this reader sees it."""
    shares = np.array(colour) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    xyz = SRGB_TO_XYZ @ np.clip(VISION[vision] @ linear, 0, 1) / SRGB_TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_class_colours_differ_for_every_kind_of_colour_vision(vision: str) -> None:
    """In L*a*b* 2.3 is just noticeable. The least here: 33.6 between two classes, 18.3 from a grey (yellow, to a tritanope)."""
    colours = [seen_as(colour, vision) for colour in CLASS_COLOURS.values()]
    assert min(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(colours, 2)) > 30
    greys = [seen_as((grey, grey, grey), vision) for grey in range(256)]
    assert min(float(np.linalg.norm(colour - grey)) for colour in colours for grey in greys) > 15


def test_a_pillow_without_freetype_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    check_drawable()
    monkeypatch.setattr(features, "check", lambda _: False)
    with pytest.raises(MisuseError, match="preview=True needs a Pillow with FreeType"):
        check_drawable()
