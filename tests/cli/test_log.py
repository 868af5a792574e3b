"""What --verbose adds to stderr, and what --log keeps of it."""

import re
import shlex
from pathlib import Path
from typing import Final

import pytest

import drunet_cli
from drunet_cli.brats import CHANNELS
from drunet_cli.cli.app import main
from tests.cli.small_cohort import SETTINGS, spoil, write_cases
from tests.support import GOLDEN_WEIGHTS, image_options

OPTIONS: Final = ("--weights", str(GOLDEN_WEIGHTS), *SETTINGS)
PREFIX: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+?(, \d+ of \d+)?: ")


@pytest.fixture(autouse=True)
def _lines_without_time_and_host() -> None:
    """They have both here, where other tests of the command line take them away."""


@pytest.fixture
def words(cohort: Path) -> list[str]:
    """Segment a small case."""
    images = {modality: cohort / "case_0" / f"case_0_{modality}.nii.gz" for modality in CHANNELS}
    return ["segment", *image_options(images), *OPTIONS]


def logged(path: Path) -> list[str]:
    """The lines of a log without time and host, which each of them must have."""
    lines = path.read_text().splitlines()
    assert [line for line in lines if not PREFIX.match(line)] == []
    return [PREFIX.sub("", line, count=1) for line in lines]


@pytest.mark.parametrize("letter", ["-v", "--verbose"])
def test_verbose_tells_what_is_decided_and_why(
    letter: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "-o", str(tmp_path / "seg.nii.gz"), letter]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'seg.nii.gz'}\n"
    for beginning in (
        "threads: 1 (as asked for)",
        "engine: ONNX Runtime, which is",
        "case_0: 24 x 20 x 6 voxels, axes LPS, slices 1 mm apart, shifted for the network; brain ",
        "weights keras_base1 (base width 1, epsilon 0.001, SHA-256 ",
        "case_0: the network took ",
    ):
        assert [line for line in err.splitlines() if line.startswith(beginning)], beginning


def test_a_log_holds_what_a_quiet_run_does_not_tell_and_is_appended_to(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, log = tmp_path / "seg.nii.gz", tmp_path / "run.log"
    assert main([*words, "-o", str(output), "--quiet", "--log", str(log)]) == 0
    assert capsys.readouterr() == (f"{output}\n", "")
    first = logged(log)
    assert first[0].startswith(f"drunet {drunet_cli.__version__}, Python ")
    assert first[0].endswith(
        f", in {Path.cwd()}: {shlex.join(['drunet', *words, '-o', str(output), '--quiet', '--log', str(log)])}"
    )
    assert first[1] == "threads: 1 (as asked for)"
    assert any(line.startswith("Warning: ") for line in first)  # random weights give no likely label map
    assert first[-2].startswith("case_0: WT ")
    assert first[-1] == "exit code 0"
    assert main([*words, "-o", str(output), "-q", "--log", str(log)]) == 6
    assert capsys.readouterr().err == f"Error: {output}: exists already; give --overwrite to replace it\n"
    assert logged(log)[-2:] == [f"Error: {output}: exists already; give --overwrite to replace it", "exit code 6"]
    before = log.read_bytes()
    assert main([*words, "-o", str(output)]) == 6
    assert log.read_bytes() == before


def test_a_log_tells_which_case_of_how_many_a_line_is_about(tmp_path: Path) -> None:
    spoil(write_cases(tmp_path / "cases", 2) / "case_1")
    log = tmp_path / "run.log"
    assert main(["segment", str(tmp_path / "cases"), *OPTIONS, "-o", str(tmp_path / "out"), "--quiet", "--log", str(log)]) == 1
    places = [found[1] for line in log.read_text().splitlines() if (found := PREFIX.match(line)) and found[1]]
    assert places == [", 1 of 2", ", 2 of 2"]


@pytest.mark.parametrize("fault", [AssertionError("a fault"), EOFError("a fault")], ids=lambda fault: type(fault).__name__)
def test_a_fault_of_drunet_is_told_and_logged_with_its_traceback(
    fault: Exception, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typer takes the end of a file for a Ctrl-C."""

    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("drunet_cli.segmentation.plan.plan_run", fail)
    log = tmp_path / "run.log"
    assert main([*words, "-o", str(tmp_path / "seg.nii.gz"), "--log", str(log)]) == 70
    *before, last = log.read_text().splitlines()
    assert before[-1] == f"{type(fault).__name__}: a fault"
    assert last.endswith(": exit code 70")
    assert f"{before[-1]}\n\nThis is a fault of drunet, not yours." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "fault", "code"),
    [
        ("_SimpleITK", ImportError("libstdc++.so.6: too old", name="_SimpleITK"), 2),
        ("a module", EOFError("marshal data too short"), 2),  # its compiled file was cut short by a full disk
        ("drunet_cli.brats", ImportError("cannot import name 'a'", name="drunet_cli.brats"), 70),
    ],
    ids=["library", "compiled file", "drunet"],
)
def test_a_library_that_cannot_be_imported_is_no_fault_of_drunet(
    name: str,
    fault: Exception,
    code: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("drunet_cli.segmentation.plan.plan_run", fail)
    log = tmp_path / "run.log"
    assert main([*words, "-o", str(tmp_path / "seg.nii.gz"), "--log", str(log)]) == code
    err = capsys.readouterr().err
    told = [line for line in err.splitlines() if line.startswith(f"Error: {name} cannot be imported ({fault})")]
    assert (len(told), "Traceback" in err) == ((1, False) if code == 2 else (0, True))
    assert "Traceback" in log.read_text()
    assert all(line.endswith("drunet doctor names versions, and the log has the traceback") for line in told)
    assert main([*words, "-o", str(tmp_path / "seg.nii.gz")]) == code
    assert code == 70 or capsys.readouterr().err.endswith("and -v or --log FILE tells where the import failed\n")
    assert main([*words, "-o", str(tmp_path / "seg.nii.gz"), "-v"]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["-q", "-v"], 2, "--verbose and --quiet exclude one another"),
        (["--log", "no/run.log"], 6, "--log no/run.log: cannot be written: No such file or directory"),
        (["--log", "."], 6, "--log .: cannot be written: Is a directory"),
        (["--log", ""], 2, "an empty path; an unset variable?"),
    ],
)
def test_what_cannot_be_told_is_refused_before_anything_is_done(
    options: list[str],
    code: int,
    told: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "-o", "seg.nii.gz", *options]) == code
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
