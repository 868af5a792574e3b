"""The report as a page: what a browser makes of it."""

import base64
import hashlib
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from drunet_cli.errors import CaseError
from drunet_cli.io.png import encode_slices
from drunet_cli.report.page import Thumbnails, encode_page, histograms, read_thumbnails
from drunet_cli.report.runs import Record, Runs, read_runs
from drunet_cli.segmentation.summary import Status, SummaryRow, encode_summary, failed_row
from drunet_cli.weights.registry import BUNDLED, COMPACT
from tests.segmentation.sidecars import document_of, write_case, write_outputs

VOID: Final = {"meta", "input", "img", "br"}
HOSTILE: Final = """"><script>alert('1')</script>&amp;<img src=x onerror=alert(2)>{{ 7 * 7 }}"""


class Reader(HTMLParser):
    """Elements of the page with their attributes, and the text of each table row's cells."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def pictures(self) -> list[dict[str, str | None]]:
        return [image for image in self.all("img") if "src" in image]

    def cases(self) -> list[list[str]]:
        return [cells for cells in self.rows if len(cells) == 10][1:]

    def fact(self, name: str) -> str:
        """What the foot says of one thing."""
        return next(cells[1] for cells in self.rows if len(cells) == 2 and cells[0] == name)


def page_of(*folders: Path, beside: Path | None = None) -> bytes:
    runs = read_runs(folders)
    return encode_page(runs, read_thumbnails(runs.records, n_threads=1), beside=beside or folders[0])


def read(*folders: Path) -> Reader:
    return Reader(page_of(*folders))


def write_preview(path: Path, size: tuple[int, int] = (40, 60)) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    path.write_bytes(encode_slices(pixels)[0])


def write_failure(folder: Path, case: str = "d") -> None:
    (folder / "summary.csv").write_bytes(encode_summary([failed_row(case, CaseError(f"{case}: no such file"))]))


def test_failures_come_first_then_warnings_and_every_row_tells_what_became_of_its_case(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_outputs(tmp_path, {**document_of("b", warnings=["resampled"]), "side": "left"})
    write_case(tmp_path, "caf\udce9")  # a name that is no text is shown as far as it is
    write_failure(tmp_path)
    page = read(tmp_path)
    assert page.cases() == [
        ["d", "", "–", "–", "–", "–", "–", "", "failed: d: no such file", "–"],
        ["b", "", "3.5", "1.5", "0.500", "1.0", "2.0", "left", "resampledresampled what resampled means", "1.8"],
        ["a", "", "3.5", "1.5", "0.500", "1.0", "2.0", "", "", "1.8"],
        ["caf", "", "3.5", "1.5", "0.500", "1.0", "2.0", "", "", "1.8"],
    ]
    assert "4 cases: 3 segmented, 1 failed; 1 with warnings." in page.text
    assert sum("data-remarkable" in row for row in page.all("tr")) == 2


def test_the_head_says_what_weights_are_for(tmp_path: Path) -> None:
    document = document_of("a")
    write_case(tmp_path, "b")
    assert b'caveat">' not in page_of(tmp_path)
    write_outputs(tmp_path, {**document, "weights": {**document["weights"], "sha256": BUNDLED[COMPACT].sha256}})
    assert "Weights compact: for trying and testing, not for research results (1 case)." in read(tmp_path).text


def test_columns_sort_by_whole_numbers_not_by_what_is_shown(tmp_path: Path) -> None:
    write_outputs(tmp_path, document_of("a", counts=(0, 12, 0)))
    page = read(tmp_path)
    cells = [cell for cell in page.all("td") if cell.get("class") == "number"]
    assert [cell["data-value"] for cell in cells] == ["0.012", "0.0", "0.0", "0.0", "0.012", "1.750"]
    assert page.rows[1][2] == "0.012"
    assert sum("aria-sort" in header for header in page.all("th")) == 9


def test_what_stands_in_files_is_text_and_nothing_else(tmp_path: Path) -> None:
    document = document_of(HOSTILE)
    document["warnings"] = [{"code": HOSTILE, "message": HOSTILE}]
    document["weights"] = {"name": HOSTILE, "sha256": HOSTILE, "origin": HOSTILE}
    document |= dict.fromkeys(("device", "device_name"), HOSTILE)
    for name in ("settings", "versions", "labels"):
        document[name] = {HOSTILE: HOSTILE}
    folder = tmp_path / '"><b>'
    write_outputs(folder, document, name='"><i>')
    write_preview(folder / '"><i>_preview.png')
    write_case(tmp_path / "harmless", "a")
    write_preview(tmp_path / "harmless/a_preview.png")
    rows = [failed_row(f"{HOSTILE}2", CaseError(HOSTILE))]
    (tmp_path / "harmless/summary.csv").write_bytes(encode_summary(rows))
    harmless, hostile = read(tmp_path / "harmless"), read(tmp_path)
    added = {tag for tag, _ in hostile.elements} - {tag for tag, _ in harmless.elements}
    assert added <= {"details", "summary", "strong", "small"}
    assert len(hostile.all("script")) == 1
    assert not [attributes for _, attributes in hostile.elements if any(name.startswith("on") for name in attributes)]
    assert hostile.text.count(HOSTILE) >= 10


def test_page_loads_nothing_and_its_policy_allows_its_own_style_and_script_alone(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_preview(tmp_path / "a_preview.png")
    content = page_of(tmp_path)
    page = Reader(content)
    loaded = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "srcset", "data")
    ]
    assert [str(value).partition(",")[0] for value in loaded] == ["data:image/webp;base64"]
    assert not page.all("link")
    (policy,) = [str(meta["content"]) for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for element in ("style", "script"):
        (source,) = re.findall(f"<{element}>(.*)</{element}>", content.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


def test_preview_is_in_the_page_and_linked_to_from_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "run 1#%"
    write_case(folder, "a")
    write_preview(folder / "a_preview.png", (500, 1000))
    page = Reader(page_of(folder, beside=tmp_path / "pages"))
    (link,) = [each for each in page.all("a") if each.get("class") == "thumbnail"]
    assert unquote(str(link["href"])) == "../run 1#%/a_preview.png"
    (image,) = page.pictures()
    with Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition(",")[2]))) as picture:
        assert (picture.format, picture.size) == ("WEBP", (960, 480))
    assert (image["width"], image["height"], image["alt"]) == ("960", "480", "Preview of a")
    assert not {"loading", "decoding"} & image.keys()  # Chromium's screenshots and prints would show black boxes


@pytest.mark.parametrize(("n_cases", "pixels", "width"), [(1, 60, "60"), (250, 1000, "960"), (251, 1000, "480")])
def test_previews_are_never_enlarged_and_narrower_where_there_are_many(
    n_cases: int, pixels: int, width: str, tmp_path: Path
) -> None:
    write_case(tmp_path, "a")
    write_preview(tmp_path / "a_preview.png", (40, pixels))
    (record,) = read_runs([tmp_path]).records
    thumbnails = read_thumbnails([record, *records_of(*[1.0] * (n_cases - 1))], n_threads=1)
    assert [str(found.width) for found in thumbnails.by_label_map[record.row.output]] == [width]


@pytest.mark.parametrize("place", ["run", "prepared", "nowhere"])
def test_picture_of_the_preparation_is_beside_the_preview(place: str, tmp_path: Path) -> None:
    prepared_from = {"record": str(tmp_path / "prepared" / "a.json")}
    beside = tmp_path / "run" / "a_prepared.png"
    document = document_of("a") | {"prepared_from": prepared_from, "files": {"a_preview.png": "", beside.name: ""}}
    if place != "run":
        del document["files"][beside.name]
    write_outputs(tmp_path / "run", document)
    picture = {"run": beside, "prepared": tmp_path / "prepared" / "a_preview.png"}.get(place)
    write_preview(tmp_path / "run" / "a_preview.png")
    if picture is not None:
        picture.parent.mkdir(exist_ok=True)
        write_preview(picture)
    page = Reader(page_of(tmp_path / "run", beside=tmp_path))
    links = [each for each in page.all("a") if each.get("class") == "thumbnail"]
    assert [each["alt"] for each in page.pictures()] == ["Preview of a", *(["Preparation of a"] if picture else [])]
    assert [each["data-case"] for each in links] == ["a", *(["a, preparation"] if picture else [])]
    assert [tmp_path / str(each["href"]) for each in links[1:]] == ([picture] if picture else [])


@pytest.mark.parametrize("damage", ["empty", "cut short", "text", "huge", "folder"])
def test_preview_that_cannot_be_shown_is_told(damage: str, tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    preview = tmp_path / "a_preview.png"
    write_preview(preview)
    content = preview.read_bytes()
    preview.unlink()
    if damage == "folder":
        preview.mkdir()
    else:
        claims_to_be_huge = content[:16] + (2**16).to_bytes(4, "big") * 2 + content[24:]
        damaged = {"empty": b"", "cut short": content[:-20], "text": b"no picture", "huge": claims_to_be_huge}
        preview.write_bytes(damaged[damage])
    page = read(tmp_path)
    assert re.search(rf"{re.escape(str(preview))}: (is|has|cannot) .*; not shown", page.text)
    assert not page.pictures()


def test_preview_that_the_sidecar_does_not_name_is_not_shown(tmp_path: Path) -> None:
    write_outputs(tmp_path, {**document_of("a"), "files": {}})
    write_preview(tmp_path / "a_preview.png")
    assert not read(tmp_path).pictures()


def test_provenance_tells_what_is_the_same_once_and_what_differs_with_numbers(tmp_path: Path) -> None:
    for case in ("a", "b", "c"):
        document = document_of(case)
        document["settings"] = {**document["settings"], "window": "auto" if case == "c" else "full"}
        if case == "c":
            del document["versions"]
        write_outputs(tmp_path, document)
    write_failure(tmp_path)
    page = read(tmp_path)
    assert page.fact("weights") == f"brats2020, sha256 {'5' * 64}, origin a paper"
    assert page.fact("window") == "full (2 cases)auto (1 case)"
    assert page.fact("device") == "cpu (a CPU)"
    assert page.fact("version of drunet") == "1.0 (2 cases)not recorded (1 case)"


def test_folders_are_told_apart_where_there_are_several(tmp_path: Path) -> None:
    write_case(tmp_path / "one", "a")
    assert [cells[0] for cells in read(tmp_path).cases()] == ["a"]
    write_case(tmp_path / "two", "a")
    assert [cells[0] for cells in read(tmp_path).cases()] == [f"a{tmp_path}/one", f"a{tmp_path}/two"]


def test_notices_stand_on_the_page(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_case(tmp_path, "b").write_text('{"schema": "drunet.segmentation/1", "ca')
    assert f"{tmp_path}/b.json: is a damaged sidecar; left out" in read(tmp_path).text


def test_equal_sidecars_give_equal_pages(tmp_path: Path) -> None:
    for case in ("a", "b"):
        write_case(tmp_path, case)
    write_preview(tmp_path / "a_preview.png")
    before = page_of(tmp_path)
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert page_of(tmp_path) == before


def records_of(*whole_tumours_ml: float) -> list[Record]:
    rows = [
        SummaryRow(case=f"case_{n}", status=Status.DONE, volumes_ml={"WT": volume}, output=f"absent/{n}.nii.gz")
        for n, volume in enumerate(whole_tumours_ml)
    ]
    return [Record(row=row, source=Path("a.json")) for row in rows]


@given(
    st.lists(st.integers(0, 2_000_000).map(lambda mm3: mm3 / 1000), min_size=1, max_size=30)
    | st.sampled_from([[100.00000001], [0.001], [0.0, 0.0], [0.3, 0.1 + 0.2]])
)
def test_every_case_is_in_one_bar_of_the_histogram(volumes_ml: list[float]) -> None:
    (chart,) = histograms(records_of(*volumes_ml))
    assert sum(chart.counts) == len(chart.marks) == len(volumes_ml)
    assert 1 <= len(chart.counts) == len(chart.edges_ml) - 1 <= 20
    assert max(volumes_ml) <= chart.edges_ml[-1] * (1 + 1e-6)


def test_histogram_shows_bars_a_mark_for_every_case_median_and_quartiles() -> None:
    page = encode_page(Runs(tuple(records_of(0, 1, 2, 4, 10))), Thumbnails({}), beside=Path()).decode()
    assert "median 2.0 mL, quartiles 1.0 to 4.0 <" in page
    assert "(5 with volumes; none in 1)" in page
    assert re.findall(r"<title>(.*?) mL: (\d+) of the cases", page) == [
        *(("0 to 0.5", "1"), ("1 to 1.5", "1"), ("2 to 2.5", "1"), ("4 to 4.5", "1"), ("9.5 to 10", "1"))
    ]
    assert re.findall(r'class="case" d="M([\d.]+) .*?<title>case_(\d)', page) == [
        *(("8.0", "0"), ("42.4", "1"), ("76.8", "2"), ("145.6", "3"), ("352.0", "4"))
    ]


def test_without_volumes_there_is_no_histogram(tmp_path: Path) -> None:
    write_failure(tmp_path)
    page = read(tmp_path)
    assert "No case was segmented." in page.text
    assert not page.all("svg")
