"""Pages of the viewer beside a report: which cases get one, what it shows, and what is told of the others."""

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from drunet_cli.brats import Modality, TumourClass
from drunet_cli.cli.app import main
from drunet_cli.io.inputs import InputFile, file_sha256
from tests.segmentation.sidecars import document_of, write_case, write_outputs
from tests.segmentation.viewer_page import read_viewer_page
from tests.support import GOLDEN_IMAGES, GOLDEN_LABELS, open_image, voxels_of

pytestmark = pytest.mark.usefixtures("in_tmp_path")

Captured = pytest.CaptureFixture[str]


def segmented(case: str, folder: str = "results") -> Path:
    """The golden case under another name: images, label map and sidecar; the path of the sidecar."""
    images = {modality: Path("images") / case / path.name for modality, path in GOLDEN_IMAGES.items()}
    for modality, path in images.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(GOLDEN_IMAGES[modality], path)
    inputs = {modality: asdict(InputFile.of(path, path.stat(), sha256=file_sha256(path))) for modality, path in images.items()}
    sidecar = write_outputs(Path(folder), {**document_of(case), "inputs": inputs})
    label_map = sidecar.with_name(f"{case}.nii.gz")
    shutil.copy(GOLDEN_LABELS, label_map)
    document = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**document, "output_sha256": hashlib.sha256(label_map.read_bytes()).hexdigest()}))
    return sidecar


def links(page: Path = Path("report.html")) -> list[str]:
    return [unquote(link) for link in re.findall(r'<a class="slices" href="([^"]+)"', page.read_text())]


@pytest.mark.slow
def test_every_case_has_a_page_with_its_labels_and_the_reference_beside_them(capsys: Captured) -> None:
    segmented("a#1")
    segmented("b")
    segmented("b", "other")
    write_case(Path("results"), "c")  # of this one nothing is known but its volumes
    shutil.copytree("images/b", "references/b")
    shifted = np.roll(voxels_of(GOLDEN_LABELS), 1, axis=0)
    image = open_image(GOLDEN_LABELS)
    image.__class__(shifted, image.affine, image.header).to_filename("references/b/b_seg.nii.gz")
    assert main(["report", "results", "other", "-o", "report.html", "--viewer", "--reference", "references"]) == 0
    out, err = capsys.readouterr()
    assert out == "report.html\n"
    assert "a#1: has no reference in references; shown without (the same of 1 more)" in err
    assert "c: results/c.json: does not tell the files of the four images (so it has no viewer)" in err
    assert links() == [f"report_views/{name}.html" for name in ("a#1", "b", "b_2")]
    info, volumes = read_viewer_page(Path("report_views/b.html").read_bytes())
    expected = np.where(voxels_of(GOLDEN_LABELS) == 4, TumourClass.ET, voxels_of(GOLDEN_LABELS))
    first, last = ([entry[1] for entry in info["stored"]], info["shape"])
    box = tuple(slice(start, start + n) for start, n in zip(first, last, strict=True))  # the golden case lies L, P, S
    np.testing.assert_array_equal(volumes["prediction"], expected[box])
    np.testing.assert_array_equal(volumes["reference"], np.roll(expected, 1, axis=0)[box])
    assert "reference" not in read_viewer_page(Path("report_views/a#1.html").read_bytes())[1]


@pytest.mark.parametrize("damage", ["changed", "absent", "label map"])
def test_a_case_whose_files_are_not_as_they_were_has_no_page_and_the_others_have(damage: str, capsys: Captured) -> None:
    segmented("a")
    segmented("b")
    t2 = Path("images/a") / GOLDEN_IMAGES[Modality.T2].name
    if damage == "changed":
        shutil.copy(Path("images/a") / GOLDEN_IMAGES[Modality.T1].name, t2)
    elif damage == "absent":
        t2.unlink()
    else:
        Path("results/a.nii.gz").write_bytes(b"no label map")
    assert main(["report", "results", "-o", "report.html", "--viewer"]) == 0
    told = {
        "changed": f"a: {t2}: is no longer the image that was segmented (so it has no viewer)",
        "absent": f"a: {t2}: cannot be read: No such file or directory (so it has no viewer)",
        "label map": "a: results/a.nii.gz: ",
    }
    assert told[damage] in capsys.readouterr().err
    assert links() == ["report_views/b.html"]
    assert [path.name for path in Path("report_views").iterdir()] == ["b.html"]


def test_pages_are_replaced_only_when_asked_and_pages_of_segment_are_linked(capsys: Captured) -> None:
    sidecar = segmented("a")
    page = Path("report_views/a.html")
    page.parent.mkdir()
    page.write_text("mine")
    assert main(["report", "results", "-o", "report.html", "--viewer", "--csv", "cases.csv"]) == 6
    assert (page.read_text(), Path("report.html").exists(), Path("cases.csv").exists()) == ("mine", False, False)
    assert "report_views/a.html: exists already" in capsys.readouterr().err
    assert main(["report", "results", "-o", "report.html", "--viewer", "--overwrite", "--reference", str(GOLDEN_LABELS)]) == 0
    assert b"1.000" in page.read_bytes()  # Dice of equal label maps
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "files": {"a_view.html": "0"}}))
    Path("results/a_view.html").write_text("a page")
    assert main(["report", "results", "-o", "report.html", "--overwrite"]) == 0
    assert links() == ["results/a_view.html"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--viewer"], 2),
        (["-o", "report.html", "--reference", "references"], 2),
        (["-o", "report.html", "--viewer", "--reference", "absent"], 3),
        (["-o", "report.html", "--csv", "cases.csv", "--viewer", "--reference", "absent"], 3),
        (["-o", "report.html", "--viewer", "--reference", "one.nii.gz"], 3),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_written(options: list[str], code: int) -> None:
    for case in ("a", "b"):
        write_case(Path("results"), case)
    assert main(["report", "results", *options]) == code
    assert [path.name for path in Path().iterdir()] == ["results"]
