"""Runs that are killed, interrupted, or lose a stream: what stands under the final name is complete, and nothing else stays."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.brats import CHANNELS
from drunet_cli.cli.app import main
from tests.cli.small_cohort import SETTINGS, write_case
from tests.forks import Forks, Strike, limit_files
from tests.support import Drunet, image_options, names_in

OUTPUTS: Final = ["seg.json", "seg.nii.gz"]
MIDDLE_BYTES: Final = 2000  # less than a label map of the case, of 3232; more than a run prints

# drunet, which sends itself a signal when Python first imports a module whose name begins so.
STRIKE_AT_IMPORT: Final = """
import os, runpy, sys
number, module = int(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
strikes = [number]
def strike(event, arguments):
    if event == "import" and arguments[0].startswith(module) and strikes:
        os.kill(os.getpid(), strikes.pop())
sys.addaudithook(strike)
runpy.run_module("drunet_cli", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class WholeRun:
    """A run of a small case: its words, and the label map that it writes if nobody disturbs it."""

    words: Sequence[str]
    label_map: bytes


@pytest.fixture(scope="module")
def whole(golden_safetensors: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    folder = tmp_path_factory.mktemp("whole")
    write_case(folder / "case", labelled=False)
    images = {modality: folder / "case" / f"case_{modality}.nii.gz" for modality in CHANNELS}
    words = ("segment", *image_options(images), "--weights", str(golden_safetensors), *SETTINGS, "-o", "seg.nii.gz")
    done = forks.run(*words, folder=folder)
    assert (done.returncode, done.stdout) == (0, "seg.nii.gz\n")
    assert re.fullmatch(r"(Warning: .+\n)+case: WT .+\n", done.stderr)  # and no bar; random weights give no likely label map
    return WholeRun(words, (folder / "seg.nii.gz").read_bytes())


# Killed, and interrupted


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_the_label_map_leaves_none_and_the_next_cleans_up(
    whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    words = (*whole.words[:-1], "seg.nii", "--no-sidecar")
    killed = drunet(*words, before=limit_files(MIDDLE_BYTES, signal_ignored=False))
    assert killed.returncode == -signal.SIGXFSZ
    assert [Path(name).suffix for name in names_in(tmp_path)] == [".claim", ".tmp"]
    assert (drunet(*words).returncode, names_in(tmp_path)) == (0, ["seg.nii"])


def test_a_label_map_for_which_there_is_no_room_is_one_error_line_and_no_files(
    whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    # Python ignores the signal; the write then fails, as on a full disk.
    words = (*whole.words[:-1], "out/seg.nii", "--no-sidecar")
    done = drunet(*words, before=limit_files(MIDDLE_BYTES, signal_ignored=True))
    assert (done.returncode, done.stdout, names_in(tmp_path)) == (6, "", [])
    assert re.fullmatch(r"(Warning: .+\n)*Error: out/seg\.nii: cannot be written: File too large\n", done.stderr)


@pytest.mark.parametrize(
    ("number", "event", "about"),
    [
        (signal.SIGINT, "import", "drunet_cli.cli.app"),
        (signal.SIGTERM, "import", "numpy"),
        (signal.SIGINT, "import", "torch.nn"),
        (signal.SIGINT, "open", "case_t1ce.nii.gz"),
        (signal.SIGTERM, "open", "case_t2.nii.gz"),
        (signal.SIGINT, "open", "weights.safetensors"),
    ],
)
def test_a_signal_ends_the_run_with_its_code_and_without_files_or_traceback(
    number: signal.Signals, event: str, about: str, whole: WholeRun, drunet: Drunet, tmp_path: Path
) -> None:
    if event == "import":
        command = [sys.executable, "-c", STRIKE_AT_IMPORT, str(int(number)), about, *whole.words, "--engine", "torch"]
        begun = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
        found = (begun.returncode, begun.stdout, begun.stderr)
    else:
        done = drunet(*whole.words, strike=Strike(number, event, about))
        found = (done.returncode, done.stdout, done.stderr)
    # Before drunet has the word, the signal itself ends the process: to a shell that is the same code.
    assert found[0] in (128 + number, -number)
    assert (*found[1:], names_in(tmp_path)) == ("", "", [])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_result_is_no_traceback(number: int, whole: WholeRun, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "drunet_cli", *whole.words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "seg.nii.gz\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr
    assert process.returncode in (0, -number, 128 + number)
    assert names_in(tmp_path) == OUTPUTS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_after_the_command_has_ended_gives_its_code(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drunet_cli.cli.app._stdout_error", lambda: signal.raise_signal(number))
    assert main(["--version"]) == code


# Streams


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| true", "2>&1 | true", ">/dev/full", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_lost_stream_does_not_lose_the_label_map(redirection: str, whole: WholeRun, tmp_path: Path) -> None:
    done = in_shell(*whole.words, redirection=redirection, folder=tmp_path)
    assert "Traceback" not in done.stderr
    assert names_in(tmp_path) == OUTPUTS
    assert (tmp_path / "seg.nii.gz").read_bytes() == whole.label_map
    assert done.returncode == 0 or "full" in redirection  # also where a warning comes that nobody reads


@pytest.mark.parametrize(
    ("command", "redirection", "code"),
    [
        ("--help", "| true", 0),
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


@pytest.mark.parametrize("command", ["segment", "--help"])
def test_no_escape_sequence_goes_to_what_is_no_terminal(command: str, drunet: Drunet) -> None:
    done = drunet(command)
    assert "\x1b" not in done.stdout + done.stderr
