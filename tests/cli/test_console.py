"""Bars that show on a terminal how far a run is, and leave nothing behind; and tables for people."""

import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console
from rich.table import Table

from drunet_cli.brats import REGIONS, regions_in_words
from drunet_cli.cli.app import main
from drunet_cli.cli.cases import Batch
from drunet_cli.cli.console import Screen, SegmentationBar, cohort_table, fields_table, table_of
from drunet_cli.cli.evaluate import case_table, scores_table, statistics_table, worst_table
from drunet_cli.errors import CaseError
from drunet_cli.evaluation.evaluate import SCORES, statistics
from drunet_cli.segmentation.summary import Status, SummaryRow
from drunet_cli.training import loop
from drunet_cli.weights.registry import BUNDLED, COMPACT
from tests.cli.small_cohort import SETTINGS, write_cases
from tests.forks import Forks, Run
from tests.support import GOLDEN_WEIGHTS
from tests.training.shallow import SHALLOW, stage_blocks
from tests.weights.file_server import Answer, serving

COLUMNS: Final = 80
HIDE_CURSOR: Final = "\x1b[?25l"
SHOW_CURSOR: Final = "\x1b[?25h"
ERASE_LINE: Final = "\x1b[2K"
_SEQUENCE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR: Final = re.compile(r"\x1b\[(?:\d+;)*(?:[34][0-8]|9[0-7]|10[0-7])(?:;\d+)*m")
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
class Shown:
    """How a run whose stderr is a terminal ended, and what it wrote."""

    code: int | None = None
    stdout: str = ""
    terminal: str = ""

    @property
    def words(self) -> str:
        """What a person could read, one frame after the other."""
        return " ".join(_SEQUENCE.sub(" ", self.terminal).split())


@dataclass
class OnTerminal(Shown):
    """The same of a process under way; all is known once it has ended."""

    run: Run = field(kw_only=True)
    _seen: threading.Event = field(default_factory=threading.Event)

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
def on_terminal(
    forks: Forks, folder: Path, *words: str | Path, environment: Mapping[str, str] | None = None
) -> Iterator[OnTerminal]:
    """Run the command line until the block ends, and then to its own end."""
    ours, theirs = os.openpty()
    pytest.importorskip("termios").tcsetwinsize(theirs, (24, COLUMNS))
    variables = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), **(environment or {})}
    with forks.started(*words, folder=folder, environment=variables, streams={"stderr": os.ttyname(theirs)}) as run:
        shown = OnTerminal(run=run)
        reader = threading.Thread(target=shown.read, args=(ours,))
        reader.start()
        try:
            yield shown
            done = run.wait()
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
            os.close(theirs)  # not before: the process may still have to open the terminal
            reader.join()
            os.close(ours)
    shown.code, shown.stdout = done.returncode, done.stdout


def assert_left_clean(shown: Shown) -> None:
    """The bar was there, its line was erased, and the cursor is back."""
    assert HIDE_CURSOR in shown.terminal
    assert shown.terminal.rindex(SHOW_CURSOR) > shown.terminal.rindex(HIDE_CURSOR)
    after = shown.terminal[shown.terminal.rindex(SHOW_CURSOR) :]
    assert ERASE_LINE in after
    assert "━" not in after


@pytest.fixture
def one(golden_safetensors: Path, tmp_path: Path) -> tuple[str, ...]:
    """Segment a case alone."""
    write_cases(tmp_path / "cases", 1)
    return ("segment", "cases/case_0", "-o", "out", "--weights", str(golden_safetensors), *SETTINGS)


@pytest.fixture
def many(golden_safetensors: Path, tmp_path: Path) -> tuple[str, ...]:
    """Segment more cases than are done in a moment."""
    write_cases(tmp_path / "cases", 8)
    return ("segment", "cases", "-o", "out", "--weights", str(golden_safetensors), *SETTINGS)


def test_the_bar_of_a_case_counts_its_slices(one: Sequence[str], forks: Forks, tmp_path: Path) -> None:
    with on_terminal(forks, tmp_path, *one, environment={"NO_COLOR": "1"}) as shown:
        pass
    assert (shown.code, shown.stdout) == (0, "out/case_0.nii.gz\n"), shown.terminal
    assert re.search(r"case_0 ━+ 6/6 slices", shown.words), shown.words  # the last frame
    assert not COLOUR.search(shown.terminal)
    assert_left_clean(shown)


def test_the_bar_of_a_cohort_counts_cases(many: Sequence[str], forks: Forks, tmp_path: Path) -> None:
    with on_terminal(forks, tmp_path, *many) as shown:
        pass
    assert shown.code == 0, shown.terminal
    assert len(shown.stdout.split()) == 8
    assert re.search(r"8/8 cases case_\d \d+/\d+ slices", shown.words), shown.words
    assert_left_clean(shown)
    assert "8 cases in out" in shown.terminal[shown.terminal.rindex(SHOW_CURSOR) :]


class Terminal(io.StringIO):
    """A terminal for the command line in this process, which remembers all that is written to it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_the_bar_of_a_training_shows_what_it_is_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has imported PyTorch."""
    write_cases(tmp_path / "cases", 3)
    (tmp_path / "small.toml").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "draw_curves", lambda *_: False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    for name, value in {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}.items():
        monkeypatch.setenv(name, value)
    words = ["train", "cases", "-o", "run", "--config", "small.toml", "--device", "cpu", "--threads", "1", "--jobs", "1"]
    with stage_blocks(SHALLOW):
        code = main(words)
    assert isinstance(sys.stderr, Terminal)
    shown = Shown(code, capsys.readouterr().out, sys.stderr.getvalue())
    assert shown.code == 0, shown.terminal
    for bar in (r"reading cases ━+ \d/3", r"training ━+ \d/2 ", r"validating case_\d ━+"):
        assert re.search(bar, shown.words), shown.words
    assert_left_clean(shown)


def test_the_bar_of_a_download_counts_bytes_and_goes_away_with_its_error(forks: Forks, tmp_path: Path) -> None:
    content = GOLDEN_WEIGHTS.read_bytes()
    with serving(content, default=Answer(pause_s=0.1, block=len(content) // 5)) as server:
        environment = {"DRUNET_WEIGHTS_URL": server.url, "DRUNET_CACHE_DIR": str(tmp_path / "cache"), "DRUNET_OFFLINE": "0"}
        with on_terminal(forks, tmp_path, "weights", "download", environment=environment) as shown:
            pass
    assert (shown.code, shown.stdout) == (4, ""), shown.terminal  # other weights than the published ones
    assert re.search(r"brats2020 ━+ (\d+(?:\.\d+)?)/\1 .?B", shown.words), shown.words
    assert_left_clean(shown)


def test_an_interrupted_run_gives_the_terminal_back(many: Sequence[str], forks: Forks, tmp_path: Path) -> None:
    with on_terminal(forks, tmp_path, *many) as shown:
        shown.wait_for_bar()
        shown.run.send_signal(signal.SIGINT)
    assert shown.code == 130, shown.terminal
    assert_left_clean(shown)


@pytest.mark.parametrize(("environment", "options"), [({"TERM": "dumb"}, []), ({}, ["--quiet"])])
def test_no_bar_where_none_can_or_may_be(
    environment: Mapping[str, str], options: list[str], one: Sequence[str], forks: Forks, tmp_path: Path
) -> None:
    with on_terminal(forks, tmp_path, *one, *options, environment=environment) as shown:
        pass
    assert (shown.code, shown.stdout) == (0, "out/case_0.nii.gz\n"), shown.terminal
    assert HIDE_CURSOR not in shown.terminal
    assert "━" not in shown.terminal


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_errors_are_coloured_on_a_terminal_unless_that_is_turned_off(
    environment: Mapping[str, str], coloured: bool, forks: Forks, tmp_path: Path
) -> None:
    with on_terminal(forks, tmp_path, "segment", environment=environment) as shown:
        pass
    assert "Error" in shown.words
    assert bool(COLOUR.search(shown.terminal)) is coloured


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


@pytest.mark.parametrize(("differs", "line"), [(False, "p1: has no T2"), (True, "p1: differs: has no T2")])
def test_the_name_of_a_case_that_fails_is_told_once(differs: bool, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    batch = Batch(Screen(), n_cases=2, alone=False, json=False)
    batch.failed("p1", CaseError("p1: has no T2"), differs=differs)
    assert capfd.readouterr().err.rstrip().endswith(f"Error: {line}")


def test_colours_that_are_forced_draw_no_bar_into_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not Screen().draws


# What stands in the tables, and where


def lines_of(table: Table) -> list[str]:
    drawn = io.StringIO()
    Console(file=drawn, width=80, markup=False, emoji=False).print(table)
    return [line.rstrip() for line in drawn.getvalue().splitlines()]


def scored(case: str, dice: float) -> dict[str, Any]:
    return {"case": case, "regions": {region: {"dice": dice} for region in REGIONS}}


def test_numbers_end_below_one_another_and_names_begin_so() -> None:
    assert lines_of(worst_table([scored("a", 0.5), scored("longer", 1)])) == [
        "WORST CASES, DICE OF     WT     TC     ET",
        "a                     0.500  0.500  0.500",
        "longer                1.000  1.000  1.000",
    ]


def test_what_rounds_to_nothing_has_no_sign() -> None:
    scores = {"volume_error_ml": -0.04, "dice": -0.0}
    shown = [*lines_of(case_table({"WT": scores}, SCORES))]
    over_cases = {"WT": {name: statistics([number, number], seed=0) for name, number in scores.items()}}
    shown += lines_of(statistics_table("two", over_cases, SCORES))
    assert [line.split()[-1] for line in shown[1:3]] == ["0.0", "0.000"]
    assert not [line for line in shown if "-" in line]


def test_volumes_have_the_same_digits_in_tables_and_in_lines() -> None:
    volumes = {"WT": 12.345, "TC": 0.0214, "ET": 0.0}
    row = SummaryRow(case="a", status=Status.DONE, volumes_ml=volumes)
    assert lines_of(cohort_table([row]))[1].split()[2:] == ["12.3", "0.021", "0.0"]
    assert regions_in_words(volumes) == "WT 12.3 mL, TC 0.021 mL, ET 0.0 mL"
    scores = {"dice": 1.0, "hd95_mm": 0.0, "volume_ml": 0.0214, "reference_volume_ml": 12.345}
    assert lines_of(scores_table({"regions": {"WT": scores}}))[1].split() == ["WT", "1.000", "0.0", "0.021", "12.3"]


@pytest.mark.parametrize("quiet", [False, True])
def test_what_a_room_logs_is_a_warning_like_others(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Screen(quiet=True)
    Screen(quiet=quiet)
    logging.getLogger("drunet_cli").warning("a %s", "note")
    assert capsys.readouterr() == ("", "" if quiet else "Warning: a note\n")


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().table(fields_table({"path": "w[red]/:brain:.h5"}))
    assert capsys.readouterr().out == "path  w[red]/:brain:.h5\n"


def test_fields_without_a_value_are_left_out() -> None:
    assert lines_of(fields_table({"name": "w", "origin": "", "dropout": None, "base_width": 0})) == [
        "name        w",
        "base_width  0",
    ]


def test_a_warning_that_a_case_has_twice_is_counted() -> None:
    row = SummaryRow(case="a", status=Status.DONE, warnings=("modality-name", "resampled", "modality-name"))
    line = lines_of(cohort_table([row]))[1]
    assert line.startswith("a     done (!)  ")
    assert line.endswith("  2 x modality-name, resampled")


@pytest.mark.parametrize(
    ("error", "note"),
    [
        ("a/long/way/P7_t1.nii.gz: is truncated: copy it again", "P7_t1.nii.gz: is truncated: copy it again"),
        ("a/long/way/P7: has no T1", "a/long/way/P7: has no T1"),
        ("a case: a/P7_t1.nii: is empty", "a case: a/P7_t1.nii: is empty"),
    ],
)
def test_a_table_names_a_faulty_image_without_its_folder(error: str, note: str) -> None:
    assert lines_of(cohort_table([SummaryRow(case="P7", status=Status.FAILED, error=error)]))[1].endswith(f"  {note}")


def test_what_the_weights_are_for_stands_once_below_the_cases() -> None:
    rows = [SummaryRow(case=case, status=Status.DONE, weights_sha256=(BUNDLED[COMPACT].sha256,)) for case in "ab"]
    below = " ".join(lines_of(cohort_table(rows))[3:])
    assert below == "weights compact: for trying and testing, not for research results"
    assert len(lines_of(cohort_table([replace(row, weights_sha256=("5" * 64,)) for row in rows]))) == 3


@pytest.mark.parametrize("name", ["[red]case", "a\nb", "a\x1b[31mb"])
def test_a_name_is_printed_as_it_is_and_on_one_line(name: str) -> None:
    row = SummaryRow(case=name, status=Status.DONE, volumes_ml=dict.fromkeys(REGIONS, 1.25))
    printed = {"[red]case": "[red]case", "a\nb": "a b", "a\x1b[31mb": "a [31mb"}[name]
    assert lines_of(cohort_table([row]))[1].startswith(f"{printed}  ")
    assert lines_of(table_of(("CASE", "STATE"), [(name, "new")]))[1].startswith(f"{printed}  ")
