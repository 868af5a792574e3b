"""What moves on a terminal: a bar that shows how far a run is, leaves nothing behind, and stays out of the results."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.cli.cases import Batch
from drunet_cli.cli.console import Screen, SegmentationBar
from tests.cli.small_cohort import write_cases
from tests.support import GOLDEN_WEIGHTS, image_options
from tests.weights.file_server import Answer, serving

COLUMNS: Final = 80
HIDE_CURSOR: Final = "\x1b[?25l"
SHOW_CURSOR: Final = "\x1b[?25h"
ERASE_LINE: Final = "\x1b[2K"
_SEQUENCE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SETTINGS: Final = ("--device", "cpu", "--threads", "1")
TRAINING: Final = """
[network]
base_width = 1
[length]
epochs = 1
steps_per_epoch = 2
[batches]
size = 2
windows = [[48, 48]]
"""


@dataclass
class OnTerminal:
    """A process whose stderr is a terminal. stdout, terminal: what it wrote there, known once it has ended."""

    process: subprocess.Popen[str]
    stdout: str = ""
    terminal: str = ""
    _seen: threading.Event = field(default_factory=threading.Event)

    @property
    def words(self) -> str:
        """What a person could read, one frame after the other."""
        return " ".join(_SEQUENCE.sub(" ", self.terminal).split())

    def wait_for_bar(self) -> None:
        assert self._seen.wait(60), self.terminal

    def read(self, terminal: int) -> None:
        """All that is written to the terminal, until nobody holds it any more."""
        while True:
            try:
                text = os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # EIO: the other side is closed
                return
            self.terminal += text
            if HIDE_CURSOR in self.terminal:
                self._seen.set()


@contextmanager
def on_terminal(folder: Path, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> Iterator[OnTerminal]:
    """Run the command line until the block ends, and then to its own end."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, COLUMNS))
    without = ("NO_COLOR", "TERM", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    inherited = {name: value for name, value in os.environ.items() if name not in without}
    process = subprocess.Popen(
        [sys.executable, "-m", "drunet_cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        cwd=folder,
        env={**inherited, "TERM": "xterm-256color", **(environment or {})},
    )
    os.close(theirs)
    run = OnTerminal(process)
    reader = threading.Thread(target=run.read, args=(ours,))
    reader.start()
    try:
        yield run
        run.stdout, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        os.close(ours)


def assert_left_clean(run: OnTerminal) -> None:
    """The bar was there, its line was erased, and the cursor is back."""
    assert HIDE_CURSOR in run.terminal
    assert run.terminal.rindex(SHOW_CURSOR) > run.terminal.rindex(HIDE_CURSOR)
    after = run.terminal[run.terminal.rindex(SHOW_CURSOR) :]
    assert ERASE_LINE in after
    assert "━" not in after


def test_the_bar_of_a_case_counts_its_slices(golden_safetensors: Path, tmp_path: Path) -> None:
    with on_terminal(
        tmp_path, "segment", *image_options(), "-o", "seg.nii.gz", "--weights", golden_safetensors, *SETTINGS
    ) as run:
        pass
    assert run.process.returncode == 0, run.terminal
    assert run.stdout == "seg.nii.gz\n"
    assert re.search(r"golden ━+ 5/5 slices", run.words), run.words  # the last frame
    assert_left_clean(run)


def test_the_bar_of_a_cohort_counts_cases(golden_safetensors: Path, tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", 3)
    with on_terminal(tmp_path, "segment", "cases", "-o", "out", "--weights", golden_safetensors, *SETTINGS) as run:
        pass
    assert run.process.returncode == 0, run.terminal
    assert sorted(run.stdout.split()) == [f"out/case_{n}.nii.gz" for n in range(3)]
    assert re.search(r"3/3 cases case_\d \d+/\d+ slices", run.words), run.words
    assert_left_clean(run)
    assert "3 cases in out" in run.terminal[run.terminal.rindex(SHOW_CURSOR) :]


def test_the_bar_of_a_training_shows_what_it_is_at(tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", 3)
    (tmp_path / "small.toml").write_text(TRAINING)
    with on_terminal(
        tmp_path, "train", "cases", "-o", "run", "--config", "small.toml", "--device", "cpu", "--threads", "1", "--jobs", "1"
    ) as run:
        pass
    assert run.process.returncode == 0, run.terminal
    assert re.search(r"reading cases ━+ \d/3", run.words), run.words
    assert re.search(r"training ━+ \d/2 ", run.words), run.words
    assert re.search(r"validating case_\d ━+", run.words), run.words
    assert_left_clean(run)


def test_the_bar_of_a_download_counts_bytes_and_goes_away_with_its_error(tmp_path: Path) -> None:
    content = GOLDEN_WEIGHTS.read_bytes()
    with serving(content, default=Answer(pause_s=0.2, block=len(content) // 5)) as server:
        environment = {"DRUNET_WEIGHTS_URL": server.url, "DRUNET_CACHE_DIR": str(tmp_path / "cache"), "DRUNET_OFFLINE": "0"}
        with on_terminal(tmp_path, "weights", "download", environment=environment) as run:
            pass
    assert run.process.returncode == 4, run.terminal  # other weights than the published ones
    assert run.stdout == ""
    assert re.search(r"brats2020 ━+ (\d+(?:\.\d+)?)/\1 .?B", run.words), run.words
    assert_left_clean(run)


def test_an_interrupted_run_gives_the_terminal_back(golden_safetensors: Path, tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", 40)
    with on_terminal(tmp_path, "segment", "cases", "-o", "out", "--weights", golden_safetensors, *SETTINGS) as run:
        run.wait_for_bar()
        run.process.send_signal(signal.SIGINT)
    assert run.process.returncode == 130, run.terminal
    assert_left_clean(run)


class InterruptedTerminal(io.StringIO):
    """A terminal at whose first bytes Ctrl-C is pressed."""

    def write(self, text: str) -> int:
        if not self.getvalue():
            super().write(text)
            signal.raise_signal(signal.SIGINT)
            return len(text)
        return super().write(text)


def test_an_interrupt_while_a_bar_is_drawn_waits_until_it_can_be_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any file for a terminal then
    terminal, screen = InterruptedTerminal(), Screen()
    screen.console.file = terminal
    bar = SegmentationBar(screen, n_cases=1)
    with pytest.raises(KeyboardInterrupt):
        bar.show("case", 1, 5)
    bar.stop()
    assert terminal.getvalue().startswith(HIDE_CURSOR)
    assert SHOW_CURSOR in terminal.getvalue()


@pytest.mark.parametrize(
    ("resumes", "line"),
    [(True, "Stopped: 1 of 3 cases done; --skip-existing goes on from there"), (False, "1 of 3 cases done")],
)
def test_a_run_that_is_stopped_says_how_far_it_came(resumes: bool, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    batch = Batch(Screen(), n_cases=3, alone=False, json=False, resumes=resumes)

    def run() -> None:
        with batch.bar():
            batch.done("p1.nii.gz", {"case": "p1"}, note="p1: done")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert capfd.readouterr().err.rstrip().endswith(line)


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {}], ids=["dumb terminal", "--quiet"])
def test_no_bar_where_none_can_or_may_be(environment: Mapping[str, str], golden_safetensors: Path, tmp_path: Path) -> None:
    quiet = [] if environment else ["--quiet"]
    with on_terminal(
        tmp_path,
        "segment",
        *image_options(),
        "-o",
        "seg.nii.gz",
        "--weights",
        golden_safetensors,
        *SETTINGS,
        *quiet,
        environment=environment,
    ) as run:
        pass
    assert run.process.returncode == 0, run.terminal
    assert run.stdout == "seg.nii.gz\n"
    assert HIDE_CURSOR not in run.terminal
    assert "━" not in run.terminal


def test_colours_that_are_forced_draw_no_bar_into_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not Screen().draws
