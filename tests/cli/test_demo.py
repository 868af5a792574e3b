"""`drunet demo`. One demo is run, as a process of its own that may not touch a network, and looked at by all tests."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from drunet_cli.brats import REGIONS, class_indices
from drunet_cli.cli.app import main
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import class_map_of
from drunet_cli.phantom import scanner
from drunet_cli.weights.registry import COMPACT
from tests.support import contents, image_options

ROLES: Final = ("flair", "seg", "t1", "t1ce", "t2")
# Whole tumour, prediction against truth, on a case that the weights never saw; the issue asks for it.
LEAST_DICE: Final = 0.6
NO_TUMOUR_ML: Final = 0.1  # issue 11
# Runs drunet where whatever would reach a network ends the process, on a case of a fifth of the voxels.
WITHOUT_NETWORK: Final = """
import functools, os, sys
def refuse(event, _arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        os.write(2, f"network: {event}\\n".encode())
        os._exit(99)
sys.addaudithook(refuse)
from drunet_cli.cli.app import main
from drunet_cli.phantom import scanner
scanner.make_phantom = functools.partial(scanner.make_phantom, shape=(144, 144, 96))
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Demo:
    """What one run of `drunet demo --json` printed and left. home: where the cache would be."""

    printed: Mapping[str, Any]
    errors: str
    folder: Path
    home: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder, home = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DRUNET_", "XDG_", "ORT_"))}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env={**kept, "HOME": str(home)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Demo(json.loads(done.stdout), done.stderr, folder, home)


def files_of(name: str) -> list[str]:
    return [f"{name}/{name}_{role}.nii.gz" for role in ROLES]


def test_the_demo_needs_no_network_and_no_cache(demo: Demo) -> None:
    assert sorted(contents(demo.home)) == []
    assert sorted(contents(demo.folder / "drunet-demo")) == [
        "phantom_0.json",
        "phantom_0.nii.gz",
        *files_of("phantom_0"),
        "phantom_0_preview.png",
    ]


def test_the_demo_finds_the_tumour(demo: Demo) -> None:
    assert demo.printed["evaluation"]["regions"]["WT"]["dice"] >= LEAST_DICE


def test_the_demo_compares_its_label_map_with_the_truth(demo: Demo) -> None:
    paths = ("drunet-demo/phantom_0.nii.gz", "drunet-demo/phantom_0/phantom_0_seg.nii.gz")
    assert (demo.printed["evaluation"]["prediction"], demo.printed["evaluation"]["reference"]) == paths
    maps = [class_map_of(load_volume(demo.folder / path))[0] for path in paths]
    for region, classes in REGIONS.items():
        prediction, truth = (np.isin(class_map, classes) for class_map in maps)
        scores = demo.printed["evaluation"]["regions"][region]
        assert scores["dice"] == pytest.approx(2 * (prediction & truth).sum() / (prediction.sum() + truth.sum()))
        # Voxels of 1 mm; the object's volumes are rounded to a cubic millimetre.
        assert (scores["volume_ml"], scores["reference_volume_ml"]) == (prediction.sum() / 1000, truth.sum() / 1000)


def test_what_the_demo_prints_is_the_sidecar_which_says_what_the_weights_are_for(demo: Demo) -> None:
    sidecar = json.loads((demo.folder / "drunet-demo" / "phantom_0.json").read_text())
    assert demo.printed["segmentation"] == sidecar
    assert (demo.printed["case"], demo.printed["seed"]) == ("phantom_0", 0)
    assert sidecar["weights"]["name"] == COMPACT
    assert "trained on nineteen cases" in sidecar["weights"]["origin"]
    assert "for trying and testing, not for research results" in sidecar["weights"]["origin"]
    assert sidecar["settings"]["window"] == "auto"


def test_the_demo_ends_with_command_lines_for_images_of_ones_own(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is wrong with these lines is that the images are not there."""
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^  drunet ((?:.*\\\n)*.*)$", demo.errors, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command.replace("\\\n", " "))) == 3


def test_everything_that_the_demo_says_fits_a_narrow_terminal(demo: Demo) -> None:
    assert max(len(line) for line in demo.errors.splitlines()) <= 80


@pytest.mark.parametrize("existing", ["phantom_4/phantom_4_t2.nii.gz", "phantom_4.nii.gz", "phantom_4.json"])
def test_nothing_is_begun_where_an_output_exists(
    existing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scanner, "make_phantom", lambda _: pytest.fail("a case was made"))
    kept = tmp_path / existing
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"mine")
    assert main(["demo", "-o", str(tmp_path), "--seed", "4"]) == 6
    assert f"{kept}: exists already; give --overwrite" in capsys.readouterr().err
    assert sorted(contents(tmp_path)) == [existing]
    assert kept.read_bytes() == b"mine"


@pytest.mark.usefixtures("small_phantoms")
def test_the_table_has_a_row_for_each_region(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And --overwrite replaces what is there."""
    (tmp_path / "phantom_1.nii.gz").touch()
    assert main(["demo", "-o", str(tmp_path), "--seed", "1", "--overwrite", "--quiet"]) == 0
    captured = capsys.readouterr()
    header, *rows = captured.out.splitlines()
    assert header.split() == ["REGION", "DICE", "HD95", "mm", "VOLUME", "mL", "REFERENCE", "mL"]
    assert [re.fullmatch(r"(WT|TC|ET)( +[\d.]+){4}", row)[1] for row in rows] == list(REGIONS)  # type: ignore[index]
    assert captured.err == ""
    assert class_indices(np.asarray(load_volume(tmp_path / "phantom_1.nii.gz").voxels)).shape == (48, 56, 32)


@pytest.mark.usefixtures("small_phantoms")
@pytest.mark.parametrize("function", ["segmentation.pipeline.segment", "phantom.scanner.label_values"])
def test_a_demo_that_fails_leaves_nothing_that_stops_the_next(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(f"drunet_cli.{function}", fail)
        assert main(["demo", "-o", str(tmp_path / "new"), "--quiet"]) == 130
    assert sorted(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_phantoms")
def test_written_cases_are_as_many_as_asked_for_and_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--write-cases", "3", "--seed", "5", "-o", str(tmp_path / "cases"), "--quiet"]) == 0
    folders = [tmp_path / "cases" / f"phantom_{seed}" for seed in (5, 6, 7)]
    assert sorted(map(Path, capsys.readouterr().out.splitlines())) == folders
    assert sorted(contents(tmp_path / "cases")) == sorted(file for folder in folders for file in files_of(folder.name))
    found = find_cases([tmp_path / "cases"])
    assert [case.name for case in found.cases] == [folder.name for folder in folders]
    different = {path.read_bytes() for case in found.cases for path in case.files.values()}
    assert len(different) == 3 * len(ROLES)
    assert all(class_map_of(load_volume(case.files["seg"]))[0].any() for case in found.cases)


@pytest.mark.usefixtures("small_phantoms")
def test_written_cases_are_told_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--write-cases", "1", "--json", "--quiet", "-o", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["case"], document["seed"]) == ("phantom_0", 0)
    assert sorted(str(Path(file).relative_to(tmp_path)) for file in document["files"].values()) == files_of("phantom_0")


@pytest.mark.usefixtures("small_phantoms")
def test_no_case_is_written_where_one_of_them_exists(tmp_path: Path) -> None:
    kept = tmp_path / files_of("phantom_1")[0]
    kept.parent.mkdir()
    kept.touch()
    assert main(["demo", "--write-cases", "2", "-o", str(tmp_path)]) == 6
    assert sorted(contents(tmp_path)) == files_of("phantom_1")[:1]
    assert main(["demo", "--write-cases", "2", "--overwrite", "-o", str(tmp_path)]) == 0
    assert kept.stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--write-cases", "0"], "Invalid value for '--write-cases'"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--write-cases", "1", "--device", "cpu"], "--device cpu"),
        (["-o", ""], "an empty path"),
    ],
)
def test_misuse_is_one_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_healthy_brain_has_no_tumour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = scanner.write_phantom(scanner.make_phantom(1, tumour=False), tmp_path, "healthy")
    options = ["--weights", COMPACT, "-o", str(tmp_path / "seg.nii.gz"), "--json", "--quiet"]
    assert main(["segment", *image_options(case.images), *options]) == 0
    assert json.loads(capsys.readouterr().out)["volumes_ml"]["WT"] < NO_TUMOUR_ML
