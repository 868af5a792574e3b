"""The page that shows a case in a browser: what is in it, and what a real browser makes of it where one is installed."""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from nibabel.affines import apply_affine
from PIL import Image

from drunet_cli.brats import CHANNELS, CLASS_COLOURS, ClassMap, Labels, Modality, TumourClass
from drunet_cli.io.geometry import Turn
from drunet_cli.segmentation import viewer
from drunet_cli.segmentation.viewer import Labelled, encode_viewer
from tests.segmentation.viewer_page import read_viewer_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SHAPE: Final = (31, 37, 25)
SPACING: Final = (1.0, 1.5, 3.0)
# L, P, S as the page has it; R, A, S; and two that exchange axes, one of them 20 degrees off the patient's.
ORIENTATIONS: Final = {
    "LPS": np.diag([-1.0, -1, 1]),
    "RAS": np.eye(3),
    "SPL": np.array([[0, 0, -1.0], [0, -1, 0], [1, 0, 0]]),
    "oblique": np.array([[np.cos(0.35), 0, np.sin(0.35)], [0, 1, 0], [-np.sin(0.35), 0, np.cos(0.35)]]) @ np.eye(3)[[1, 2, 0]],
}
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")

TEXTS: Final = "Object.fromEntries([...document.querySelectorAll('[id]')].map((each) => [each.id, each.innerText]))"

Images = dict[Modality, npt.NDArray[Any]]


def affine_of(orientation: str) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[orientation] * SPACING
    affine[:3, 3] = (-20, 33, 7)
    return affine


def case(*, margin: int = 2) -> tuple[Images, ClassMap]:
    """Four noisy images with a background around them, and a tumour of all classes, off the middle."""
    rng = np.random.default_rng(0)
    inside = tuple(slice(margin, n - margin) for n in SHAPE)
    images = {}
    for number, modality in enumerate(CHANNELS):
        images[modality] = np.zeros(SHAPE, dtype=np.int16)
        images[modality][inside] = rng.integers(100, 1000 + 500 * number, tuple(n - 2 * margin for n in SHAPE))
    class_map = np.zeros(SHAPE, dtype=np.uint8)
    class_map[5:20, 8:28, 9:20] = TumourClass.ED
    class_map[7:16, 12:24, 11:17] = TumourClass.ET
    class_map[9:13, 15:20, 12:15] = TumourClass.NCR
    return images, class_map


def page_of(orientation: str = "RAS", *, name: str = "a case", **options: Any) -> bytes:
    images, class_map = case()
    prediction = Labelled(class_map, Labels.BRATS2020)
    return encode_viewer(images, prediction, **{"affine": affine_of(orientation), "name": name, **options})


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_voxel_and_label_comes_back_at_its_place_in_the_file_and_in_the_patient(orientation: str) -> None:
    images, class_map = case()
    affine = affine_of(orientation)
    info, volumes = read_viewer_page(page_of(orientation))
    places = np.stack(np.meshgrid(*map(np.arange, info["shape"]), indexing="ij"), axis=-1)  # [X, Y, Z, 3]
    stored = np.stack([first + flip * places[..., axis] for axis, first, flip in info["stored"]], axis=-1)
    in_file = tuple(np.moveaxis(stored, -1, 0))
    np.testing.assert_array_equal(volumes["prediction"], class_map[in_file])
    for modality, voxels in images.items():
        entry, codes = info["modalities"][modality], volumes[modality]
        step = (entry["high"] - entry["low"]) / (entry["levels"] - 1)
        shown = entry["low"] + (codes.astype(np.float64) - 1) * step
        expected = np.clip(voxels[in_file], entry["low"], entry["high"])
        np.testing.assert_array_equal(codes == 0, voxels[in_file] == 0)
        assert np.abs(shown - expected)[codes > 0].max() <= step / 2 * (1 + 1e-9)
        assert np.mean(expected[codes > 0] == voxels[in_file][codes > 0]) > 0.99
    np.testing.assert_allclose(
        places @ np.array(info["affine"])[:, :3].T + np.array(info["affine"])[:, 3], apply_affine(affine, stored)
    )
    # The axes of the page are L, P, S, or near them, and nothing but background is left out.
    assert (np.diag(np.array(info["affine"])[:, :3]) * (-1, -1, 1) > 0).all()
    assert np.count_nonzero(volumes["flair"]) == np.count_nonzero(images[Modality.FLAIR])


@pytest.mark.parametrize(("limit", "levels", "steps"), [(150_000, 255, 1), (145_000, 127, 1), (100_000, 127, 2)])
def test_a_large_case_has_coarser_images_and_whole_labels(
    limit: int, levels: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "LARGEST_BYTES", limit)
    page = page_of()
    info, volumes = read_viewer_page(page)
    assert len(page) <= limit
    assert {(entry["levels"], np.prod(entry["step"])) for entry in info["modalities"].values()} == {(levels, steps)}
    assert ("the images have" in page.decode()) == (levels < 255)
    np.testing.assert_array_equal(volumes["prediction"], Turn.of(affine_of("RAS"), SHAPE).turned(case()[1])[2:-2, 2:-2, 2:-2])


def test_the_page_loads_nothing_and_shows_hostile_names_as_text() -> None:
    hostile = """</script><script>alert('1')</script>"><img src=x>"""
    page = page_of(name=hostile, weights=[hostile], warnings=[(hostile, hostile)], side=hostile, caveat=hostile).decode()
    assert page.count("<script") == 2 + len(CHANNELS) + 1
    assert not re.search(r"<(img|link|a|iframe)\b|<script[^>]* src|https?:", page)
    assert """Content-Security-Policy" content="default-src 'none'; style-src 'sha256-""" in page


def test_the_page_tells_warnings_in_words_without_the_names_of_files_and_opens_them_where_they_are_serious() -> None:
    mild = [
        ("thick-slices", "slices are 5 mm apart"),
        ("forms-disagree", "/data/A B: C/x_flair.nii.gz: sform and qform differ"),
    ]
    page = page_of(warnings=mild, side="on the left (left 98 %, right 0 %)").decode()
    assert "2 warnings: thick-slices, forms-disagree" in page
    assert "<p><strong>forms-disagree</strong> sform and qform differ</p>" in page
    assert "<details open" not in page.replace('class="notes" ', "")
    assert "On the left (left 98 %, right 0 %)." in page
    page = page_of(warnings=[("not-skull-stripped", "x_flair.nii (FLAIR): shows a skull")]).decode()
    assert '<details class="notes" open>' in page
    assert "1 warning: not-skull-stripped" in page
    assert "</strong> FLAIR: shows a skull</p>" in page


def test_equal_cases_give_equal_pages_and_the_values_are_those_of_the_files() -> None:
    images, class_map = case()
    reference = Labelled(np.roll(class_map, 1, axis=0), Labels.BRATS2023)
    page = page_of(reference=reference)
    assert page == page_of(reference=reference)
    info, _ = read_viewer_page(page)
    assert [info["labels"][source]["values"] for source in ("prediction", "reference")] == [[0, 1, 2, 4], [0, 1, 2, 3]]
    both = np.count_nonzero((class_map > 0) & (reference.class_map > 0))
    assert f"{both / np.count_nonzero(class_map):.3f}" in page.decode()  # Dice of equal sizes
    empty = encode_viewer(images, Labelled(np.zeros_like(class_map), Labels.BRATS2020), affine=np.eye(4), name="a")
    assert b"No tumour was found." in empty


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium or Chrome is installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])  # root has no sandbox
        yield opened
        opened.close()


def opened(browser: "Browser", path: Path, content: bytes, fragment: str = "") -> "Page":
    """The page as it is when all images are there. Whatever the browser complains of, and any request, is an error."""
    path.write_bytes(content)
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(20_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda request: complaints.append(request.url) if request.url.partition("#")[0] != path.as_uri() else None
    )
    page.goto(path.as_uri() + fragment)
    page.wait_for_selector("html[data-ready]")
    page.locator("#value-t2").filter(
        has_not_text="\u2026"
    ).wait_for()  # wait_for_function evaluates text, which the page forbids
    assert complaints == []
    return page


def settle(page: "Page") -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")


def canvas_of(plane: str) -> str:
    return f".view[data-plane={plane}][data-source=prediction] .cut"


def point(page: "Page", plane: str, right: float = 0, down: float = 0) -> None:
    """Move the pointer to so many CSS pixels from the middle of a plane."""
    box = page.locator(canvas_of(plane)).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2 + right, box["y"] + box["height"] / 2 + down)
    settle(page)


def voxel(page: "Page") -> tuple[int, ...]:
    return tuple(map(int, page.locator("#voxel").inner_text().split()))


def patient_mm(page: "Page") -> npt.NDArray[np.float64]:
    """RAS millimetres that the page tells."""
    return np.array([float(word) for word in page.locator("#patient").inner_text().removesuffix(" mm").split()])


@pytest.mark.slow
@pytest.mark.parametrize(("orientation", "limit"), [("oblique", 6_000_000), ("SPL", 100_000)])
def test_what_is_told_under_the_pointer_is_what_the_page_holds_there(
    orientation: str, limit: int, browser: "Browser", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so what the files hold, as the first test shows; the last page has coarser images."""
    monkeypatch.setattr(viewer, "LARGEST_BYTES", limit)
    _, class_map = case()
    reference = Labelled(np.roll(class_map, 2, axis=1), Labels.BRATS2023)
    content = page_of(orientation, reference=reference)
    page = opened(browser, tmp_path / "a.html", content, "#11,17,13")
    info, volumes = read_viewer_page(content)
    names = ["none", "NCR necrotic core", "ED oedema", "ET enhancing tumour"]
    seen = {voxel(page)}
    assert seen == {(11, 17, 13)}
    for plane in ("axial", "coronal", "sagittal"):
        for right, down in ((0, 0), (-31, 12), (45, -38)):
            point(page, plane, right, down)
            said = page.evaluate(TEXTS)
            seen.add(place := tuple(map(int, said["voxel"].split())))
            for source, labelled, values in (("prediction", class_map, "0124"), ("reference", reference.class_map, "0123")):
                index = labelled[place]
                assert said[f"label-{source}"] == f"{values[index]} {names[index]}"
            inner = {axis: (place[k] - first) * flip for k, (axis, first, flip) in enumerate(info["stored"])}
            for modality, entry in info["modalities"].items():
                code = int(volumes[modality][tuple(inner[axis] // entry["step"][axis] for axis in range(3))])
                grey = (entry["high"] - entry["low"]) / (entry["levels"] - 1)
                told = float(said[f"value-{modality}"].lstrip("\u2264\u2265 "))
                assert told == pytest.approx(entry["low"] + (code - 1) * grey if code else 0, abs=0.5)
            np.testing.assert_allclose(patient_mm(page), apply_affine(affine_of(orientation), place), atol=0.051)
    assert len(seen) > 8
    page.close()


@pytest.mark.slow
def test_planes_are_radiological_and_true_to_scale(browser: "Browser", tmp_path: Path) -> None:
    """Right on the screen is L, L and P, up is A, S and S; a millimetre is as long across as it is down."""
    page = opened(browser, tmp_path / "a.html", page_of("SPL"))
    for plane, right, up in (("axial", (0, -1), (1, 1)), ("coronal", (0, -1), (2, 1)), ("sagittal", (1, -1), (2, 1))):
        point(page, plane)
        middle = patient_mm(page)
        point(page, plane, right=60)
        to_the_right = patient_mm(page) - middle
        point(page, plane, down=-60)
        upwards = patient_mm(page) - middle
        for (axis, sign), moved in ((right, to_the_right), (up, upwards)):
            assert moved[axis] * sign > 5
            np.testing.assert_allclose(np.delete(moved, axis), 0, atol=1e-6)
        assert abs(np.abs(to_the_right).max() - np.abs(upwards).max()) <= max(SPACING)
        letters = page.locator(f"{canvas_of(plane)} ~ .letter").all_inner_texts()
        assert letters == list({"axial": "APRL", "coronal": "SIRL", "sagittal": "SIAP"}[plane])
    page.close()


def slices(page: "Page") -> list[int]:
    """The slices that are shown, counted from 1."""
    canvases = [page.locator(canvas_of(plane)) for plane in ("axial", "coronal", "sagittal")]
    return [int(canvas.get_attribute("aria-valuenow") or 0) for canvas in canvases]


@pytest.mark.slow
def test_wheel_keys_and_clicks_go_through_the_slices(browser: "Browser", tmp_path: Path) -> None:
    _, class_map = case()
    page = opened(browser, tmp_path / "a.html", page_of("LPS"))
    for key, classes in (("w", (1, 2, 3)), ("t", (1, 3)), ("e", (3,))):
        page.keyboard.press(key)
        settle(page)
        mask = np.isin(class_map, classes)
        counts = [np.count_nonzero(mask, axis=axes) for axes in ((0, 1), (0, 2), (1, 2))]
        fullest = [np.flatnonzero(each == each.max()) for each in counts]
        assert slices(page) == [int(each[len(each) // 2]) - 2 + 1 for each in fullest]  # the margin is left out
    before = slices(page)
    point(page, "axial")
    page.mouse.wheel(0, -100)
    page.keyboard.press("ArrowUp")
    settle(page)
    assert slices(page) == [before[0] + 2, *before[1:]]
    point(page, "coronal")
    page.mouse.wheel(0, 100)  # towards the patient's back
    settle(page)
    assert slices(page) == [before[0] + 2, before[1] + 1, before[2]]
    point(page, "axial", 40, 60)
    under = voxel(page)
    page.mouse.down()
    page.mouse.up()
    point(page, "sagittal", 1000, 1000)
    assert voxel(page) == under
    page.keyboard.press("Home")
    settle(page)
    assert 1 in slices(page)
    page.close()


def pixel(page: "Page", plane: str) -> tuple[int, ...]:
    """The colour in the middle of the cross-hair's voxel, as a screenshot has it; the cross-hair lies in the middle."""
    box = page.locator(canvas_of(plane)).bounding_box()
    assert box is not None
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        found = picture.convert("RGB").getpixel((int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)))
    assert isinstance(found, tuple)
    return tuple(map(int, found))


@pytest.mark.slow
def test_images_windows_and_labels_are_drawn_as_chosen(browser: "Browser", tmp_path: Path) -> None:
    images, class_map = case()
    middle = tuple(n // 2 for n in SHAPE)
    class_map[:] = 0
    class_map[middle[0] - 4 : middle[0] + 5, middle[1] - 4 : middle[1] + 5, middle[2] - 4 : middle[2] + 5] = TumourClass.ET
    reference = Labelled(np.where(class_map > 0, np.uint8(TumourClass.ED), class_map), Labels.BRATS2020)
    content = encode_viewer(
        images,
        Labelled(class_map, Labels.BRATS2020),
        affine=affine_of("RAS"),
        name="a",
        reference=reference,
        warnings=[("not-skull-stripped", "many words " * 99)],
        caveat="for trying",
    )
    page = opened(browser, tmp_path / "a.html", content, f"#{','.join(map(str, middle))}")
    said = page.get_by_text("not a medical device").bounding_box()
    assert said is not None
    assert said["y"] + said["height"] <= 720  # pixels that a small laptop shows, whatever else there is to say
    for keys in ("x", "s", *["]"] * 12):  # no lines, pixels as they are, opacity 1
        page.keyboard.press(keys)
    settle(page)
    et, ed = (CLASS_COLOURS[each] for each in (TumourClass.ET, TumourClass.ED))
    assert {pixel(page, plane) for plane in ("axial", "coronal", "sagittal")} == {et}
    page.keyboard.press("r")
    settle(page)
    assert pixel(page, "axial") == ed
    for keys in ("r", "r", "r", "o"):
        page.keyboard.press(keys)
    settle(page)
    outlined = pixel(page, "axial")
    page.keyboard.press("l")
    settle(page)
    assert outlined == pixel(page, "axial")  # an outline leaves the middle free
    for number, modality in enumerate(CHANNELS, start=1):
        page.keyboard.press(str(number))
        settle(page)
        assert page.locator(f"[data-modality={modality}]").get_attribute("aria-pressed") == "true"
        black, white = (float(page.locator(id_).input_value()) for id_ in ("#black", "#white"))
        grey = pixel(page, "coronal")
        expected = 255 * np.clip((images[modality][middle] - black) / (white - black), 0, 1)
        assert len(set(grey)) == 1
        assert abs(grey[0] - expected) <= 3  # a grey of 255, rounded twice, and the window's digits
    point(page, "axial")
    page.mouse.down(button="right")
    point(page, "axial", 0, 250)
    page.mouse.up(button="right")
    settle(page)
    assert float(page.locator("#black").input_value()) > black
    assert pixel(page, "coronal")[0] < grey[0] or grey[0] == 0
    page.close()


@pytest.mark.slow
def test_a_damaged_page_says_so(browser: "Browser", tmp_path: Path) -> None:
    content = page_of()
    begin = content.index(b'id="volume-flair">') + len(b'id="volume-flair">')
    page = browser.new_page()
    path = tmp_path / "a.html"
    path.write_bytes(content[:begin] + content[begin + 4000 :])
    page.goto(path.as_uri())
    page.wait_for_selector("#state.trouble")
    assert "is damaged" in page.locator("#state").inner_text()
    page.close()
