"""Runs that are killed, interrupted, or lose a stream: what stands under the final name is complete, and nothing else stays."""

import hashlib
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import pytest

from drunet_cli.brats import Modality
from drunet_cli.cli.app import main
from tests.support import GOLDEN_IMAGES, GOLDEN_WEIGHTS, Drunet, image_options

SETTINGS: Final = ("--weights", str(GOLDEN_WEIGHTS), "--device", "cpu", "--threads", "1")
SEGMENT: Final = ("segment", *image_options(), *SETTINGS)
OUTPUTS: Final = ["seg.json", "seg.nii.gz"]

# Runs drunet, and sends it a signal when Python first reports an event (see sys.audit) that is about a certain thing.
STRIKE: Final = """
import os, runpy, sys
number, wanted, about = int(sys.argv[1]), sys.argv[2], sys.argv[3]
del sys.argv[1:4]
strikes = [number]
def strike(event, arguments):
    if event == wanted and about in str(arguments[0]) and strikes:
        os.kill(os.getpid(), strikes.pop())
sys.addaudithook(strike)
runpy.run_module("drunet_cli", run_name="__main__", alter_sys=True)
"""
# Runs drunet where no file may grow beyond 16 KiB, which a sidecar is below and a label map above: the system kills it there.
OVERGROW: Final = """
import resource, runpy, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))
runpy.run_module("drunet_cli", run_name="__main__", alter_sys=True)
"""
# Every step of writing, in their order: what Python is about to do, and with which temporary.
STEPS: Final = [(event, f".seg.{kind}.") for kind in ("json", "nii.gz") for event in ("open", "os.link", "os.remove")]
every_step = pytest.mark.parametrize(("event", "temporary"), STEPS, ids=lambda word: word.strip("."))
both_signals = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)


@dataclass(frozen=True)
class WholeRun:
    """A run that nobody disturbs, and what it writes."""

    label_map: bytes


@pytest.fixture(scope="module")
def golden_run(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    return whole_run(SEGMENT, tmp_path_factory.mktemp("golden"))


def whole_run(arguments: tuple[str, ...], folder: Path) -> WholeRun:
    with started(*arguments, "-o", "seg.nii.gz", folder=folder) as process:
        assert process.wait(timeout=240) == 0, process.communicate()
    return WholeRun((folder / "seg.nii.gz").read_bytes())


@contextmanager
def started(
    *arguments: str, folder: Path, program: tuple[str, ...] = ("-m", "drunet_cli")
) -> Iterator["subprocess.Popen[str]"]:
    """drunet as a process of its own in a folder."""
    command = [sys.executable, *program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        try:
            yield process
        finally:
            process.kill()


def struck(number: int, event: str, about: str, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run drunet with one signal at one event."""
    command = [sys.executable, "-c", STRIKE, str(int(number)), event, about, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_complete_or_absent(folder: Path, whole: WholeRun) -> None:
    label_map, sidecar = folder / "seg.nii.gz", folder / "seg.json"
    assert not label_map.exists() or label_map.read_bytes() == whole.label_map
    if sidecar.exists() and label_map.exists():  # a sidecar alone counts as nothing: the label map is published last
        assert json.loads(sidecar.read_bytes())["output_sha256"] == hashlib.sha256(label_map.read_bytes()).hexdigest()


def assert_next_run_cleans_up(drunet: Drunet, folder: Path, whole: WholeRun) -> None:
    again = ("--overwrite",) if (folder / "seg.nii.gz").exists() else ()
    done = drunet(*SEGMENT, "-o", "seg.nii.gz", *again)
    assert (done.returncode, names(folder)) == (0, OUTPUTS), done.stderr
    assert (folder / "seg.nii.gz").read_bytes() == whole.label_map


# Killed, and interrupted


@pytest.mark.slow
@every_step
def test_a_run_killed_while_it_writes_leaves_a_complete_label_map_or_none_and_the_next_cleans_up(
    event: str, temporary: str, golden_run: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    done = struck(signal.SIGKILL, event, temporary, *SEGMENT, "-o", "seg.nii.gz", folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert_complete_or_absent(tmp_path, golden_run)
    assert_next_run_cleans_up(drunet, tmp_path, golden_run)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_the_label_map_leaves_none_and_the_next_cleans_up(
    golden_run: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    with started(*SEGMENT, "-o", "seg.nii.gz", folder=tmp_path, program=("-c", OVERGROW)) as process:
        assert process.wait(timeout=120) == -signal.SIGXFSZ
    assert not (tmp_path / "seg.nii.gz").exists()
    assert_next_run_cleans_up(drunet, tmp_path, golden_run)


@pytest.mark.slow
def test_a_killed_run_keeps_the_label_map_that_it_was_to_replace(tmp_path: Path) -> None:
    (tmp_path / "seg.nii.gz").write_bytes(b"an earlier label map")
    options = ("-o", "seg.nii.gz", "--overwrite")
    done = struck(signal.SIGKILL, "os.rename", ".seg.nii.gz.", *SEGMENT, *options, folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "seg.nii.gz").read_bytes() == b"an earlier label map"


@pytest.mark.parametrize(
    ("number", "event", "about"),
    [
        (signal.SIGINT, "import", "drunet_cli.cli.app"),
        (signal.SIGTERM, "import", "numpy"),
        (signal.SIGINT, "import", "torch"),
        (signal.SIGTERM, "import", "torch.nn"),
        (signal.SIGINT, "open", "golden_t1ce.nii.gz"),
        (signal.SIGTERM, "open", "golden_t2.nii.gz"),
        (signal.SIGINT, "open", "keras_base1"),
    ],
)
def test_a_signal_ends_the_run_with_its_code_and_without_files_or_traceback(
    number: signal.Signals, event: str, about: str, tmp_path: Path
) -> None:
    done = struck(number, event, about, *SEGMENT, "--engine", "torch", "-o", "out/seg.nii.gz", folder=tmp_path)
    # Before drunet has the word, the signal itself ends the process: to a shell that is the same code.
    assert done.returncode in (128 + number, -number)
    assert (done.stdout, done.stderr, names(tmp_path)) == ("", "", [])


@pytest.mark.slow
@both_signals
@every_step
def test_a_signal_while_the_outputs_are_written_leaves_all_of_them_or_none(
    event: str, temporary: str, number: int, code: int, golden_run: WholeRun, tmp_path: Path
) -> None:
    done = struck(number, event, temporary, *SEGMENT, "-o", "seg.nii.gz", folder=tmp_path)
    assert "Traceback" not in done.stderr
    assert (done.returncode, names(tmp_path)) in [(code, []), (code, OUTPUTS), (0, OUTPUTS)]
    assert_complete_or_absent(tmp_path, golden_run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_result_is_no_traceback(number: int, tmp_path: Path) -> None:
    with started(*SEGMENT, "-o", "seg.nii.gz", folder=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "seg.nii.gz\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr
    assert process.returncode in (0, -number, 128 + number)
    assert names(tmp_path) == OUTPUTS


# Streams


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| true", ">/dev/full", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_lost_stream_does_not_lose_the_label_map(redirection: str, golden_run: WholeRun, tmp_path: Path) -> None:
    done = in_shell(*SEGMENT, "-o", "seg.nii.gz", redirection=redirection, folder=tmp_path)
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == OUTPUTS
    assert (tmp_path / "seg.nii.gz").read_bytes() == golden_run.label_map


@pytest.mark.slow
def test_a_warning_that_nobody_reads_does_not_stop_the_run(tmp_path: Path) -> None:
    done = in_shell(*warned(tmp_path / "case"), "-o", "out/seg.nii.gz", redirection="2>&1 | true", folder=tmp_path)
    assert (done.returncode, [path.name for path in sorted(tmp_path.glob("out/*"))]) == (0, OUTPUTS)


@pytest.mark.parametrize(
    ("command", "redirection", "code"),
    [
        ("--help", "| true", 0),
        ("weights list", "| true", 0),
        ("--version", ">/dev/full", 6),
        ("weights list --json", ">/dev/full", 6),
        ("weights list", "<&- >&- 2>&-", 0),
        ("segment", "2>&1 | true", 2),
        ("segment", "2>/dev/full", 2),
    ],
)
def test_an_answer_that_nobody_reads_is_no_failure_and_one_that_is_lost_is_one(
    command: str, redirection: str, code: int, tmp_path: Path
) -> None:
    done = in_shell(*command.split(), redirection=redirection, folder=tmp_path)
    assert done.returncode == code
    assert done.stderr == "" if code != 6 else re.fullmatch(r"Error: .+No space left on device.*\n", done.stderr)


def in_shell(*arguments: str, redirection: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """drunet in a shell line; its code, not that of what it is piped into."""
    line = f'set -o pipefail; "$@" {redirection}'
    command = ["bash", "-c", line, "bash", sys.executable, "-m", "drunet_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=False)


def warned(folder: Path) -> tuple[str, ...]:
    """The golden case with slices 3 mm apart, of which drunet warns before the work."""
    folder.mkdir()
    images = {}
    for modality, path in GOLDEN_IMAGES.items():
        image = nib.Nifti1Image.from_filename(path)
        affine = image.affine @ np.diag([1, 1, 3, 1])
        images[modality] = folder / path.name
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), images[modality])
    return ("segment", *image_options(images), *SETTINGS)


# Terminals

CONTROL: Final = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")
COLOUR: Final = re.compile(r"\x1b\[(?:\d+;)*(?:[34][0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


@dataclass(frozen=True)
class Terminal:
    """What a run has written to its terminal."""

    code: int
    written: str

    @property
    def screen(self) -> str:
        """What a person sees in the end: of the control sequences, lines erased and the cursor moved up."""
        lines, row, column = [""], 0, 0
        for token in re.findall(rf"{CONTROL.pattern}|[\r\n]|[^\x1b\r\n]+", self.written):
            if token == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif token == "\r":
                column = 0
            elif token == "\x1b[2K":
                lines[row] = ""
            elif moved := re.fullmatch(r"\x1b\[(\d+)A", token):
                row -= int(moved[1])
            elif not token.startswith("\x1b"):
                lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
                column += len(token)
        return "\n".join(lines).strip()


def on_terminal(*arguments: str, folder: Path, environment: Mapping[str, str] | None = None) -> Terminal:
    ours, theirs = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **(environment or {})}
    command = [sys.executable, "-m", "drunet_cli", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=variables) as process:
        os.close(theirs)
        written = b""
        while chunk := _read(ours):
            written += chunk
    os.close(ours)
    return Terminal(process.returncode, written.decode())


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2**16)
    except OSError:  # so Linux tells the end of a terminal
        return b""


@pytest.mark.slow
def test_bar_appears_on_a_terminal_and_vanishes(tmp_path: Path) -> None:
    terminal = on_terminal(*SEGMENT, "-o", "seg.nii.gz", folder=tmp_path)
    assert terminal.code == 0
    assert re.search(r"golden.+ \d/5 slices", CONTROL.sub("", terminal.written))
    *warnings, note, path = terminal.screen.splitlines()
    assert all(line.startswith("Warning: ") for line in warnings)  # random weights give no likely label map
    assert (note.partition(" ")[0], path) == ("golden:", "seg.nii.gz")


def test_errors_are_coloured_on_a_terminal(tmp_path: Path) -> None:
    assert COLOUR.search(on_terminal("segment", folder=tmp_path).written)


@pytest.mark.parametrize("command", ["segment", "--help"])
def test_no_color_turns_colours_off_on_a_terminal(command: str, tmp_path: Path) -> None:
    assert not COLOUR.search(on_terminal(*command.split(), folder=tmp_path, environment={"NO_COLOR": "1"}).written)


@pytest.mark.slow
def test_no_color_turns_the_colours_of_the_bar_off(tmp_path: Path) -> None:
    terminal = on_terminal(*SEGMENT, "-o", "seg.nii.gz", folder=tmp_path, environment={"NO_COLOR": "1"})
    assert "slices" in terminal.written
    assert not COLOUR.search(terminal.written)


@pytest.mark.parametrize("command", ["segment", "--help"])
def test_no_escape_sequence_goes_to_what_is_no_terminal(command: str, drunet: Drunet) -> None:
    done = drunet(*command.split())
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.slow
def test_run_without_a_terminal_writes_warnings_and_one_line_and_no_bar(drunet: Drunet, tmp_path: Path) -> None:
    done = drunet(*warned(tmp_path / "case"), "-o", "seg.nii.gz")
    assert done.stdout == "seg.nii.gz\n"
    assert re.fullmatch(r"Warning: slices are 3 mm apart.+\n(Warning: .+\n)*golden: WT .+\n", done.stderr)


# Outputs


def test_existing_output_is_refused_and_stays(drunet: Drunet, tmp_path: Path) -> None:
    (tmp_path / "seg.nii.gz").write_bytes(b"an earlier label map")
    done = drunet(*SEGMENT, "-o", "seg.nii.gz")
    assert (done.returncode, names(tmp_path)) == (6, ["seg.nii.gz"])
    assert done.stderr == "Error: seg.nii.gz: exists already; give --overwrite to replace it\n"


@pytest.mark.slow
def test_label_map_for_which_there_is_no_room_is_one_error_line_and_no_files(tmp_path: Path) -> None:
    ignored = OVERGROW.replace("SIG_DFL", "SIG_IGN")  # as Python itself does; the write then fails, as on a full disk
    with started(*SEGMENT, "-o", "out/seg.nii.gz", folder=tmp_path, program=("-c", ignored)) as process:
        stdout, stderr = process.communicate(timeout=120)
    *warnings, error = stderr.splitlines()
    assert all(line.startswith("Warning: ") for line in warnings)  # random weights give no likely label map
    assert (process.returncode, stdout, error) == (6, "", "Error: out/seg.nii.gz: cannot be written: File too large")
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.slow
def test_overwrite_replaces_both_outputs(golden_run: WholeRun, drunet: Drunet, tmp_path: Path) -> None:
    for name in OUTPUTS:
        (tmp_path / name).write_text("earlier")
    done = drunet(*SEGMENT, "-o", "seg.nii.gz", "--overwrite")
    assert (done.returncode, names(tmp_path)) == (0, OUTPUTS)
    assert_complete_or_absent(tmp_path, golden_run)


@pytest.mark.parametrize("kind", ["the same path", "a hard link", "a symbolic link"])
def test_output_that_is_an_input_is_refused_even_to_overwrite(kind: str, drunet: Drunet, tmp_path: Path) -> None:
    content = GOLDEN_IMAGES[Modality.T1].read_bytes()
    image, output = tmp_path / "golden_t1.nii.gz", tmp_path / "seg.nii.gz"
    image.write_bytes(content)
    match kind:
        case "the same path":
            output = image
        case "a hard link":
            output.hardlink_to(image)
        case "a symbolic link":
            output.symlink_to(image)
    options = image_options({**GOLDEN_IMAGES, Modality.T1: image})
    done = drunet("segment", *options, *SETTINGS, "-o", output, "--overwrite")
    assert (done.returncode, image.read_bytes()) == (6, content)
    assert "is one of the inputs" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644)], ids=["077", "022"])
def test_permissions_follow_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drunet_cli", *SEGMENT, "-o", "seg.nii.gz"]
    subprocess.run(command, cwd=tmp_path, umask=umask, check=True, capture_output=True)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in OUTPUTS} == {mode}


@pytest.mark.parametrize("name", ["seg.mgz", "seg.JSON"])
def test_output_of_another_format_is_refused(name: str, drunet: Drunet, tmp_path: Path) -> None:
    done = drunet(*SEGMENT, "-o", name)
    assert (done.returncode, names(tmp_path)) == (2, [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_after_the_command_has_ended_gives_its_code(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drunet_cli.cli.app._stdout_error", lambda: signal.raise_signal(number))
    assert main(["--version"]) == code
