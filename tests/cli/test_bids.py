"""`drunet segment --bids`: OUT is a BIDS derivatives data set, which the other commands read as any folder of results.

What is expected here was checked with bids-validator 3.0.2, which finds no error in it.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.app import main
from drunet_cli.io.inputs import file_sha256
from drunet_cli.io.nifti import load_volume, stored_header
from tests.cli.small_cohort import write_case
from tests.support import GOLDEN_WEIGHTS, contents

pytestmark = pytest.mark.usefixtures("in_tmp_path")

NAMES: Final = ("_FLAIR", "_ce-gd_T1w", "_T1w", "_T2w")
OF_SUB_01: Final = "sub-01/ses-1/anat/sub-01_ses-1_space-orig_desc-tumour_dseg"
OF_SUB_02: Final = "sub-02/anat/sub-02_space-orig_desc-tumour_dseg"
COMPANIONS: Final = [
    ".bidsignore",
    "README",
    "dataset_description.json",
    "labels_itksnap.txt",
    "labels_slicer.ctbl",
    "summary.csv",
    "summary.xlsx",
]
WEIGHTS: Final = ("--weights", str(GOLDEN_WEIGHTS), "--window", "auto", "--quiet")
Captured = pytest.CaptureFixture[str]


def write_dataset(root: Path, cases: Sequence[str] = ("sub-01_ses-1", "sub-02"), **description: str) -> Path:
    """A data set of these cases. description: further entries of its dataset_description.json."""
    for seed, case in enumerate(cases):
        write_case(root.joinpath(*case.split("_"), "anat"), seed=seed, name=case, words=NAMES, labelled=False)
    about = {"Name": root.name, "BIDSVersion": "1.10.0", **description}
    (root / "dataset_description.json").write_text(json.dumps(about))
    return root


def segment(*words: str | Path) -> int:
    return main(["segment", *map(str, words), "--bids", *WEIGHTS])


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def test_results_are_a_data_set_that_tells_labels_sources_and_space(capsys: Captured) -> None:
    raw = write_dataset(Path("raw"), DatasetDOI="doi:10.0/1")
    (raw / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    assert segment(raw, "-o", "out", "--probabilities", "--uncertainty", "--labels", "brats2023") == 0
    assert capsys.readouterr().out == f"out/{OF_SUB_01}.nii.gz\nout/{OF_SUB_02}.nii.gz\n"
    beside = [f"desc-tumour_{each}" for each in ("dseg.json", "dseg.nii.gz", "dseg.tsv", "entropy.nii.gz")]
    beside += ["desc-tumour_probseg.json", "desc-tumour_probseg.nii.gz"]
    beside += [f"label-{region}_desc-tumour_uncertainty.nii.gz" for region in ("WT", "TC", "ET")]
    stems = [each.removesuffix("desc-tumour_dseg") for each in (OF_SUB_01, OF_SUB_02)]
    assert sorted(contents(Path("out"))) == sorted([*COMPANIONS, *(f"{stem}{name}" for stem in stems for name in beside)])
    address = Path("raw").absolute().as_uri()
    description = read("out/dataset_description.json")
    assert description["DatasetType"] == "derivative"
    assert [each["Name"] for each in description["GeneratedBy"]] == ["drunet"]
    assert description["SourceDatasets"] == [{"URL": address, "DOI": "doi:10.0/1"}]
    assert description["DatasetLinks"] == {"raw": address}
    sources = [f"bids:raw:sub-01/ses-1/anat/sub-01_ses-1{name}.nii.gz" for name in NAMES]
    for document in (
        sidecar := read(f"out/{OF_SUB_01}.json"),
        probabilities := read(f"out/{stems[0]}desc-tumour_probseg.json"),
    ):
        assert (document["Sources"], document["SpatialReference"]) == (sources, sources[0])
    assert sidecar["case"] == "sub-01_ses-1"
    assert probabilities["LabelMap"] == ["BG", "NCR", "ED", "ET"]
    with Path(f"out/{OF_SUB_01}.tsv").open() as stream:
        labels = {int(row["index"]): (row["abbreviation"], row["color"]) for row in csv.DictReader(stream, delimiter="\t")}
    assert labels == {1: ("NCR", "#d55e00"), 2: ("ED", "#56b4e9"), 3: ("ET", "#f0e442")}


def test_other_commands_read_the_data_set_as_any_folder_of_results(capsys: Captured) -> None:
    """Runs of shards, an interrupted run that goes on, `evaluate` and `report`."""
    raw = write_dataset(Path("raw"))
    for k in (1, 2):
        assert segment(raw, "-o", "raw/derivatives/drunet", "--uncertainty", "--viewer", "--shard", f"{k}/2") == 0
    results = raw / "derivatives/drunet"
    assert read(results / "dataset_description.json")["DatasetLinks"] == {"raw": "../.."}
    (results / f"{OF_SUB_02}.nii.gz").unlink()
    before = contents(results)
    assert segment(raw, "-o", results, "--uncertainty", "--viewer", "--skip-existing", "--dry-run") == 0
    assert contents(results) == before
    assert segment(raw, "-o", results, "--uncertainty", "--viewer", "--skip-existing") == 0
    with (results / "summary.csv").open() as stream:
        assert [row["status"] for row in csv.DictReader(stream)] == ["left out", "done"]
    assert segment(raw, "-o", results) == 6
    assert segment(raw, "-o", results, "--overwrite") == 0
    assert not [*results.rglob("*_uncertainty.nii.gz")]
    assert segment(raw, "-o", results, "--uncertainty", "--viewer", "--skip-existing") == 0
    capsys.readouterr()
    manual = Path("manual/sub-02/anat/sub-02_desc-manual_dseg.nii.gz")
    manual.parent.mkdir(parents=True)
    manual.write_bytes((results / f"{OF_SUB_02}.nii.gz").read_bytes())
    assert main(["evaluate", str(results), "manual", "--uncertainty", "--allow-missing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["case"] == "sub-02"
    assert {"summary.csv", "summary.xlsx", "*.html", "*_views"} <= set(
        (results / ".bidsignore").read_text().split()
    )  # of `report` too
    moved = results.rename("moved")
    assert main(["report", str(moved), "-o", "report.html", "--csv", "report.csv"]) == 0
    with Path("report.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["output"]) for row in rows] == [
        ("sub-01_ses-1", f"moved/{OF_SUB_01}.nii.gz"),
        ("sub-02", f"moved/{OF_SUB_02}.nii.gz"),
    ]
    page = Path("report.html").read_text()
    assert f"moved/{OF_SUB_01.removesuffix('dseg')}view.html" in page
    assert "is gone" not in page
    (moved / f"{OF_SUB_02}.json").unlink()  # the table still tells where the label map is
    assert main(["report", str(moved), "-o", "again.html"]) == 0
    assert "is gone" not in Path("again.html").read_text()


def test_a_description_keeps_what_people_wrote_and_gains_what_a_run_brings() -> None:
    """Another data set of images, among them one of derivatives, whose names tell a space."""
    assert segment(write_dataset(Path("raw")), "-o", "out") == 0
    path = Path("out/dataset_description.json")
    path.write_text(json.dumps({**read(path), "Name": "ours", "Authors": ["A", "B"]}))
    brains = write_dataset(Path("site 2/brains"), ["sub-03"], DatasetType="derivative")
    for image in [*brains.rglob("*.nii.gz")]:
        before, _, suffix = image.name.rpartition("_")
        image.rename(image.with_name(f"{before}_space-SRI24_{suffix}"))
    other = write_dataset(Path("other"), ["sub-04"])
    assert segment(brains, other, "-o", "out") == 0
    description = read(path)
    assert (description["Name"], description["Authors"]) == ("ours", ["A", "B"])
    assert list(description["DatasetLinks"]) == ["raw", "brains", "raw2"]
    sidecar = read("out/sub-03/anat/sub-03_space-SRI24_desc-tumour_dseg.json")
    assert sidecar["SpatialReference"] == "bids:brains:sub-03/anat/sub-03_space-SRI24_FLAIR.nii.gz"
    assert read("out/sub-04/anat/sub-04_space-orig_desc-tumour_dseg.json")["Sources"][0].startswith("bids:raw2:sub-04/")


def test_images_of_no_data_set_are_told_by_their_paths_in_the_sidecar_alone() -> None:
    write_case(Path("p1"), labelled=False)
    options = [word for modality in CHANNELS for word in (f"--{modality}", f"p1/p1_{modality}.nii.gz")]
    assert segment(*options, "--case", "sub-09", "-o", "out") == 0
    sidecar = read("out/sub-09/anat/sub-09_space-orig_desc-tumour_dseg.json")
    assert "Sources" not in sidecar
    assert sidecar["SpatialReference"] == Path("p1/p1_flair.nii.gz").absolute().as_uri()
    assert "DatasetLinks" not in read("out/dataset_description.json")


def test_prepared_cases_lie_in_a_space_of_their_own_and_come_from_the_raw_scans() -> None:
    """The record as `drunet prepare` writes it, of a preparation that moved nothing."""
    raw = write_dataset(Path("raw"), ["sub-01_ses-1"])
    prepared = write_case(Path("out/sourcedata/prepared/sub-01_ses-1"), labelled=False)
    scans = dict(zip(CHANNELS, (raw / f"sub-01/ses-1/anat/sub-01_ses-1{name}.nii.gz" for name in NAMES), strict=True))
    scans[Modality.T2].unlink()  # is not needed any more
    flair = load_volume(prepared / "sub-01_ses-1_flair.nii.gz")
    grid = {"shape": flair.shape, "affine": flair.affine.tolist(), "header": stored_header(flair.header)}
    record: dict[str, Any] = {
        "schema": "drunet.preparation/1",
        "folder": str(prepared),
        "files": {path.name: file_sha256(path) for path in prepared.iterdir()},
        "inputs": {modality: {"path": str(path)} for modality, path in scans.items()},
        "grids": dict.fromkeys(CHANNELS, grid),
        "transforms": dict.fromkeys(CHANNELS, np.eye(4).tolist()),
        "warnings": [],
        **dict.fromkeys(("convention", "moved", "brain", "atlas", "untouched")),
    }
    (prepared / "sub-01_ses-1.json").write_text(json.dumps(record))
    assert segment("out/sourcedata/prepared", "-o", "out", "--in-space", "t1ce", "--in-space", "t2") == 0
    stem = "out/sub-01/ses-1/anat/sub-01_ses-1_space-{}_desc-tumour_dseg"
    references = {space: read(f"{stem.format(space)}.json")["SpatialReference"] for space in ("BraTS", "T1ce", "T2")}
    assert references == {
        "BraTS": "bids::sourcedata/prepared/sub-01_ses-1/sub-01_ses-1_flair.nii.gz",
        "T1ce": "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_ce-gd_T1w.nii.gz",
        "T2": "orig",
    }
    sources = [f"bids:raw:sub-01/ses-1/anat/sub-01_ses-1{name}.nii.gz" for name in NAMES if name != "_T2w"]
    assert read(f"{stem.format('BraTS')}.json")["Sources"] == read(f"{stem.format('T1ce')}.json")["Sources"] == sources
    assert Path(f"{stem.format('T1ce')}.tsv").read_bytes() == Path(f"{stem.format('BraTS')}.tsv").read_bytes()
    assert main(["evaluate", "out", "out/sub-01", "--quiet"]) == 0  # the copies on the grids of scans are left aside


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["p1", "-o", "out"],
            2,
            "--bids: 1 case has no name that BIDS knows (p1); name cases sub-LABEL or sub-LABEL_ses-LABEL",
        ),
        (["p1", "-o", "out.nii.gz"], 2, "-o out.nii.gz: is one file; --bids needs a folder"),
        (["raw", "-o", "out", "--no-sidecar"], 2, "--bids needs the sidecars; leave --no-sidecar out"),
        (["raw", "-o", "out", "--prepare"], 2, "--bids with --prepare needs --keep-prepared DIR"),
        (["raw", "-o", "raw"], 6, "raw/dataset_description.json: describes a data set that drunet did not make"),
        (["raw", "-o", "damaged"], 6, "damaged/dataset_description.json: cannot be read as JSON"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused_before_the_first_case(
    words: list[str], code: int, message: str, capsys: Captured
) -> None:
    write_dataset(Path("raw"), ["sub-01"])
    write_case(Path("p1"), labelled=False)
    Path("damaged").mkdir()
    Path("damaged/dataset_description.json").write_text("{")
    before = contents(Path.cwd())
    for more in ([], ["--dry-run"]):
        assert segment(*words, *more) == code
        assert message in capsys.readouterr().err
    assert contents(Path.cwd()) == before


def test_a_case_that_fails_leaves_no_folder_and_no_trace_among_the_subjects() -> None:
    raw = write_dataset(Path("raw"))
    path = raw / "sub-02/anat/sub-02_T2w.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    assert segment(raw, "-o", "out") == 1
    assert sorted(each.name for each in Path("out").glob("sub-*")) == ["sub-01"]
    assert segment(raw / "sub-01", "-o", "strict", "--strict") == 1  # of its label map, which the toy network makes
    assert not [*Path("strict").glob("sub-*")]
