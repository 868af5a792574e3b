"""The report as a page."""

import base64
import hashlib
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from drunet_cli.errors import CaseError
from drunet_cli.io.png import encode_slices
from drunet_cli.report.page import encode_page, read_thumbnails, volume_charts
from drunet_cli.report.runs import Record, read_runs
from drunet_cli.segmentation.cohort import Status, encode_summary, failed_row
from tests.segmentation.small_runs import document_of, write_case, write_outputs

VOID: Final = {"meta", "input", "img", "br"}
HOSTILE: Final = """"><script>alert('1')</script>&amp;<img src=x onerror=alert(2)>"""


class Reader(HTMLParser):
    """What a browser makes of the page: elements with their attributes, and the text of each table row's cells."""

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
        if "tr" in self._open:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def fact(self, name: str) -> str:
        """What the foot says of one thing."""
        return next(cells[1] for cells in self.rows if len(cells) == 2 and cells[0] == name)


def page_of(*folders: Path, beside: Path | None = None) -> bytes:
    runs = read_runs(folders)
    return encode_page(runs, read_thumbnails(runs.records, n_threads=1), beside=beside or folders[0])


def write_preview(path: Path, size: tuple[int, int] = (40, 60)) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    path.write_bytes(encode_slices(pixels)[0])


def cases_in(page: bytes) -> list[str]:
    return [cells[0] for cells in Reader(page).rows if len(cells) == 9][1:]


def test_cases_that_failed_come_first_then_those_with_warnings(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_case(tmp_path, "b", warnings=["resampled"])
    write_case(tmp_path, "c")
    (tmp_path / "summary.csv").write_bytes(encode_summary([failed_row("d", CaseError("d: no such file"))]))
    assert cases_in(page_of(tmp_path)) == ["d", "b", "a", "c"]


def test_row_tells_volumes_warnings_and_seconds(tmp_path: Path) -> None:
    write_case(tmp_path, "a", warnings=["resampled"])
    (_, cells, *_) = Reader(page_of(tmp_path)).rows
    assert cells == ["a", "", "3.5", "1.5", "0.5", "1.0", "2.0", "resampledresampled what resampled means", "1.8"]


def test_columns_sort_by_whole_numbers_not_by_what_is_shown(tmp_path: Path) -> None:
    write_outputs(tmp_path, document_of("a", counts=(0, 12, 0)))
    page = Reader(page_of(tmp_path))
    cells = [cell for cell in page.all("td") if cell.get("class") == "number"]
    assert ([cell["data-value"] for cell in cells], page.rows[1][2]) == (
        ["0.012", "0.0", "0.0", "0.0", "0.012", "1.750"],
        "<0.1",
    )
    assert sum("aria-sort" in header for header in page.all("th")) == 8


def test_reason_of_a_failure_is_told(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_bytes(encode_summary([failed_row("d", CaseError("d: no such file"))]))
    page = Reader(page_of(tmp_path))
    assert page.rows[1][7] == "failed: d: no such file"
    assert "1 case: 0 segmented, 1 failed; 0 with warnings." in page.text


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
    harmless, hostile = Reader(page_of(tmp_path / "harmless")), Reader(page_of(tmp_path))
    assert {tag for tag, _ in hostile.elements} - {tag for tag, _ in harmless.elements} <= {
        "details",
        "summary",
        "strong",
        "small",
    }
    assert len(hostile.all("script")) == 1
    assert not [attributes for _, attributes in hostile.elements if any(name.startswith("on") for name in attributes)]
    assert hostile.text.count(HOSTILE) >= 10


def test_name_that_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    write_case(tmp_path, "caf\udce9")
    assert cases_in(page_of(tmp_path)) == ["caf"]


def test_page_loads_nothing(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_preview(tmp_path / "a_preview.png")
    page = Reader(page_of(tmp_path))
    loaded = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "srcset", "data")
    ]
    assert len(loaded) == 1
    assert str(loaded[0]).startswith("data:image/webp;base64,")
    assert not page.all("link")
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize("element", ["style", "script"])
def test_policy_allows_the_page_its_own_script_and_style(element: str, tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    page = page_of(tmp_path).decode()
    (source,) = re.findall(f"<{element}>(.*)</{element}>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    assert f"{element}-src 'sha256-{digest}'" in page


def test_preview_is_in_the_page_and_linked_to_from_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "run 1#%"
    write_case(folder, "a")
    write_preview(folder / "a_preview.png", (500, 1000))
    (link,) = [each for each in Reader(page_of(folder, beside=tmp_path / "pages")).all("a") if each.get("class") == "thumbnail"]
    assert unquote(str(link["href"])) == "../run 1#%/a_preview.png"
    (image,) = [each for each in Reader(page_of(folder)).all("img") if "src" in each]
    with Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition(",")[2]))) as picture:
        assert (picture.format, picture.size) == ("WEBP", (960, 480))
    assert (image["width"], image["height"], image["alt"]) == ("960", "480", "Preview of a")


def test_small_preview_is_not_enlarged(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_preview(tmp_path / "a_preview.png", (40, 60))
    assert (Reader(page_of(tmp_path)).all("img")[0]["width"]) == "60"


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no picture", None])
def test_preview_that_is_damaged_is_told(content: bytes | None, tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    preview = tmp_path / "a_preview.png"
    write_preview(preview)
    preview.write_bytes(preview.read_bytes()[:-20] if content is None else content)
    page = Reader(page_of(tmp_path))
    assert f"{preview}: is " in page.text
    assert "not shown" in page.text
    assert not [image for image in page.all("img") if "src" in image]


def test_preview_that_claims_to_be_huge_is_not_opened(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    preview = tmp_path / "a_preview.png"
    write_preview(preview)
    content = preview.read_bytes()
    preview.write_bytes(content[:16] + (2**16).to_bytes(4, "big") * 2 + content[24:])
    assert "has 65536 x 65536 pixels" in Reader(page_of(tmp_path)).text


def test_many_cases_get_narrower_pictures(tmp_path: Path) -> None:
    for number in range(251):
        write_case(tmp_path, f"case_{number}")
    write_preview(tmp_path / "case_7_preview.png", (100, 1000))
    assert Reader(page_of(tmp_path)).all("img")[0]["width"] == "480"


def test_provenance_tells_what_is_the_same_once_and_what_differs_with_numbers(tmp_path: Path) -> None:
    for case in ("a", "b", "c"):
        document = document_of(case)
        document["settings"] = {**document["settings"], "window": "auto" if case == "c" else "full"}
        write_outputs(tmp_path, document)
    page = Reader(page_of(tmp_path))
    assert page.fact("weights") == f"brats2020, sha256 {'5' * 64}, origin a paper"
    assert page.fact("window") == "full (2 cases)auto (1 case)"
    assert page.fact("device") == "cpu (a CPU)"
    assert page.fact("version of drunet") == "1.0"


def test_provenance_tells_where_nothing_was_recorded(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    document: dict[str, Any] = document_of("b")
    del document["versions"]
    write_outputs(tmp_path, document)
    (tmp_path / "summary.csv").write_bytes(encode_summary([failed_row("d", CaseError("d: no such file"))]))
    assert Reader(page_of(tmp_path)).fact("version of drunet") == "1.0 (1 case)not recorded (1 case)"


def test_folders_are_told_apart_where_there_are_several(tmp_path: Path) -> None:
    write_case(tmp_path / "one", "a")
    assert cases_in(page_of(tmp_path)) == ["a"]
    write_case(tmp_path / "two", "a")
    assert cases_in(page_of(tmp_path)) == [f"a{tmp_path}/one", f"a{tmp_path}/two"]


def test_notices_stand_on_the_page(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    write_case(tmp_path, "b").write_text('{"schema": "drunet.segmentation/1", "ca')
    assert f"{tmp_path}/b.json: is a damaged sidecar; left out" in Reader(page_of(tmp_path)).text


def test_equal_sidecars_give_equal_pages(tmp_path: Path) -> None:
    for case in ("a", "b"):
        write_case(tmp_path, case)
    write_preview(tmp_path / "a_preview.png")
    before = page_of(tmp_path)
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert page_of(tmp_path) == before


def records_of(*whole_tumours_ml: float) -> list[Record]:
    rows = [failed_row(f"case_{n}", CaseError("why")) for n in range(len(whole_tumours_ml))]
    return [
        Record(row=type(row)(case=row.case, status=Status.DONE, volumes_ml={"WT": volume}), source=Path("a.json"))
        for row, volume in zip(rows, whole_tumours_ml, strict=True)
    ]


@pytest.mark.parametrize(
    "volumes",
    [
        (0.0,),
        (0.0, 0.0),
        (0.3,),
        (0.001,),
        (0.0, 7.0, 7.0),
        (100.0, 20.0, 33.333),
        (100.00000001,),
        tuple(n * 0.1 for n in range(400)),
        (1e4, 3.0),
    ],
)
def test_every_case_is_in_one_bar_of_the_histogram(volumes: tuple[float, ...]) -> None:
    chart = volume_charts(records_of(*volumes))
    assert sum(int(count) for count in re.findall(r" mL: (\d+) of the cases", chart)) == len(volumes)
    assert chart.count('class="case"') == len(volumes)
    assert 1 <= chart.count('class="bar"') <= 20
    assert max(float(x) for x in re.findall(r'd="M([\d.]+) ', chart)) <= 352


def test_histogram_tells_median_and_quartiles() -> None:
    assert "median 3.0 mL, quartiles 2.0 to 4.0" in volume_charts(records_of(1, 2, 3, 4, 5))


def test_no_volumes_give_no_chart() -> None:
    assert volume_charts([]) == ""
