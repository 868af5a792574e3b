"""`drunet segment --dry-run`: it tells what file names and headers tell, in the words and with the exit code of the run."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import pytest

from drunet_cli.cli.app import main
from drunet_cli.weights.registry import DEFAULT, ENTRIES
from tests.cli.small_cohort import SETTINGS, shift, write_case, write_cases
from tests.support import GOLDEN_WEIGHTS, open_image

Captured = pytest.CaptureFixture[str]

# As in test_segment_cohort.py: windows, since they are fast.
N_CASES: Final = 2
VOXELS_UNREAD: Final = "(headers were read; voxels were not, nor was the device tried)"


@pytest.fixture(autouse=True)
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DRUNET_OFFLINE", raising=False)
    return write_cases(Path("cases"), N_CASES)


def segment(*arguments: str | Path, weights: str | Path = GOLDEN_WEIGHTS) -> int:
    return main(["segment", "--weights", str(weights), *SETTINGS, "-o", "out", *map(str, arguments)])


def four_dimensional(path: Path) -> None:
    image = open_image(path)
    nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, axis=3), image.affine).to_filename(path)


def plain_and_too_long(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()) + b"more")


def coarse(path: Path) -> None:
    image = open_image(path)
    nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1.5, 1.5, 4, 1])).to_filename(path)


def test_folders_that_hold_no_case_have_rows_and_are_counted(capsys: Captured) -> None:
    for name in ("odd/a.nii.gz", "raw/IM1"):
        Path("cases", name).parent.mkdir()
        Path("cases", name).touch()
    assert segment("cases", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == [
        "        no case  pass over  cases/odd (a.nii.gz)",
        "        no case  pass over  cases/raw (IM1)",
    ]
    assert err.splitlines()[-1] == f"Of 2 cases drunet would segment 2; 2 folders without a case passed over {VOXELS_UNREAD}"
    assert [line.split(" and was")[0] for line in err.splitlines()[:2]] == [
        "Warning: 1 folder holds no NIfTI",
        "Warning: 1 folder holds NIfTI but no case",
    ]
    assert segment("cases", "--dry-run", "--json") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()][-2:] == [
        {"case": None, "state": "no case", "would": "pass over", "folder": "cases/odd", "holds": "a.nii.gz"},
        {"case": None, "state": "no case", "would": "pass over", "folder": "cases/raw", "holds": "IM1"},
    ]


IN_HEADERS: Final[dict[str, Callable[[Path], object]]] = {
    "another place": shift,
    "4D": four_dimensional,
    "too long": plain_and_too_long,
    "missing": Path.unlink,
}


def told(lines: str, label: str) -> list[str]:
    return sorted(line for line in lines.splitlines() if line.startswith(f"{label}: ") and "cases " not in line)


# What is wrong with cases


def test_what_headers_tell_is_said_in_the_words_of_the_run(capsys: Captured) -> None:
    for kind, damage in IN_HEADERS.items():
        damage(write_case(Path("cases", kind), seed=7) / f"{kind}_t2.nii.gz")
    for path in Path("cases/case_1").glob("*.nii.gz"):
        coarse(path)
    Path("cases/case_1/case_1_t1.nii.gz").rename("cases/case_1/swap")
    Path("cases/case_1/case_1_t2.nii.gz").rename("cases/case_1/case_1_t1.nii.gz")
    Path("cases/case_1/swap").rename("cases/case_1/case_1_t2.nii.gz")
    assert segment("cases", "--dry-run") == 1
    out, foretold = capsys.readouterr()
    assert not Path("out").exists()
    assert segment("cases") == 1
    happened = capsys.readouterr().err
    assert told(foretold, "Error") == told(happened, "Error")
    assert len(told(foretold, "Error")) == len(IN_HEADERS)
    assert set(told(foretold, "Warning")) == {
        line for line in told(happened, "Warning") if "resampled" in line or " apart" in line
    }
    assert len(told(foretold, "Warning")) == 2
    rows = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert {row[0]: row[2] for row in rows if row[1] == "new"} == {
        "case_0": "segment",
        "case_1": "segment",
        **dict.fromkeys(set(IN_HEADERS) - {"missing"}, "fail"),
    }
    *_, counts, last = foretold.splitlines()
    n_bad = len(IN_HEADERS)
    assert counts == f"Of {N_CASES + n_bad} cases drunet would segment 2, fail in {n_bad}; 1 with warnings {VOXELS_UNREAD}"
    assert last.startswith(f"Error: {n_bad} of {N_CASES + n_bad} cases would fail: ")


@pytest.mark.parametrize("kind", ["another place", "missing"])
def test_a_case_alone_ends_the_dry_run_as_it_would_the_run(kind: str, capsys: Captured) -> None:
    IN_HEADERS[kind](Path("cases/case_0/case_0_t2.nii.gz"))
    said = []
    for option in (["--dry-run"], []):
        assert segment("cases/case_0", *option) == 3
        said.append(capsys.readouterr())
    assert said[0] == said[1]


def test_json_tells_warnings_by_code_and_failures_as_the_run_does(capsys: Captured) -> None:
    for path in Path("cases/case_0").glob("*.nii.gz"):
        coarse(path)
    shift(Path("cases/case_1/case_1_t1.nii.gz"))
    assert segment("cases", "--dry-run", "--json") == 1
    good, bad = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [warning["code"] for warning in good["warnings"]] == ["resampled", "thick-slices"]
    assert all(warning["message"] for warning in good["warnings"])
    assert bad.keys() == {"case", "error", "exit_code"}
    assert (bad["case"], bad["exit_code"]) == ("case_1", 3)


# What is there already


@pytest.mark.parametrize("in_the_way", ["case_0.nii.gz", "case_0.json", "case_0_preview.png"])
@pytest.mark.parametrize("source", ["cases", "cases/case_0"])
def test_what_is_in_the_way_of_a_run_that_skips_fails_in_its_case(in_the_way: str, source: str, capsys: Captured) -> None:
    Path("out").mkdir()
    Path("out", in_the_way).write_bytes(b"mine")
    said = []
    for option in (["--dry-run"], []):
        assert segment(source, "--skip-existing", "--preview", *option) == (1 if source == "cases" else 6)
        said.append(told(capsys.readouterr().err, "Error"))
    assert said[0] == said[1]
    assert f"out/{in_the_way}: exists already" in said[0][0]
    assert Path("out", in_the_way).read_bytes() == b"mine"


def test_what_is_complete_would_be_left_out(capsys: Captured) -> None:
    assert segment("cases", "--quiet") == 0
    capsys.readouterr()
    assert segment("cases", "--skip-existing", "--dry-run") == 0
    assert capsys.readouterr().err == "Of 2 cases drunet would verify and leave out 2\n"


# Weights


def test_weights_that_would_be_downloaded_are_named_with_their_size(capsys: Captured) -> None:
    assert segment("cases", "--dry-run", weights=DEFAULT) == 0
    counts, download = capsys.readouterr().err.splitlines()
    assert counts == f"Of 2 cases drunet would segment 2 {VOXELS_UNREAD}"
    assert download.startswith(
        f"Weights brats2020 are not in the cache: about {ENTRIES[DEFAULT].megabytes} MB would be downloaded "
    )
    assert download.endswith(f" into {Path('cache/weights').absolute()}")
    assert not Path("cache").exists()


def test_weights_that_may_not_be_fetched_end_it_with_their_code(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    assert segment("cases", "--dry-run", weights=DEFAULT) == 4
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 + N_CASES
    assert "DRUNET_OFFLINE" in err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("page.h5", b"<html>", "page.h5: is a web page, not the file itself; "),
        ("cut.h5", GOLDEN_WEIGHTS.read_bytes()[:3000], "cut.h5: "),
        ("cut.safetensors", b"\x40\0\0\0\0\0\0\0{}", "cut.safetensors: not a readable safetensors file"),
    ],
)
def test_a_file_that_holds_no_weights_ends_it_with_their_code(name: str, content: bytes, reason: str, capsys: Captured) -> None:
    Path(name).write_bytes(content)
    said = []
    for option in (["--dry-run"], []):
        assert segment("cases", *option, weights=name) == 4
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1]
    assert said[0].startswith(f"Error: {reason}")
