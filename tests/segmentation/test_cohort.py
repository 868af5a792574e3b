"""Many cases at once: each comes to its end once, whatever the others do, and no more of them is held than is needed."""

import os
import shutil
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from drunet_cli.brats import Labels, Modality
from drunet_cli.errors import CaseError, DeviceError, LostDeviceError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.inputs import file_sha256
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.cohort import CaseResult, Outcome, segment_cases
from drunet_cli.segmentation.outputs import OutputFiles, read_sidecar
from drunet_cli.segmentation.pipeline import CheckedCase
from drunet_cli.segmentation.plan import PlannedCase
from drunet_cli.segmentation.settings import Settings
from tests.cli.small_cohort import images, save, spoil, write_cases
from tests.segmentation.bright_engine import SETTINGS, BrightEnsemble, outcomes_of, plan_of
from tests.support import ENDED_PID, contents, wait_until

N_CASES: Final = 6
NAMES: Final = [f"case_{n}" for n in range(N_CASES)]
PATIENCE_S: Final = 30.0  # for what takes milliseconds
STEADY_S: Final = 0.1  # in which a run that is not bounded reads all there is: a case takes some 10 ms
RESUMED: Final = replace(SETTINGS, skip_existing=True)

Outcomes = Generator[tuple[PlannedCase, Outcome]]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases that no test changes."""
    return write_cases(tmp_path_factory.mktemp("cohort"), N_CASES)


@pytest.fixture(scope="module")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their outputs, which no test changes."""
    out = tmp_path_factory.mktemp("finished")
    assert done(outcomes_of(cohort, out)) == set(NAMES)
    return out


@pytest.fixture
def own_cohort(cohort: Path, tmp_path: Path) -> Path:
    """Cases to be damaged."""
    shutil.copytree(cohort, tmp_path / "cohort")
    return tmp_path / "cohort"


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("drunet-")]


class Run:
    """A run over a cohort. meanwhile: called with the name of a case while its network computes."""

    def __init__(
        self,
        cohort: Path,
        out: Path,
        settings: Settings = SETTINGS,
        *,
        meanwhile: Callable[[str], object] = lambda _: None,
        on_progress: Callable[[str, int, int], None] = lambda *_: None,
        device: str = "cuda:0",
        error: Exception | None = None,
    ) -> None:
        self.computed: list[str] = []
        self.warnings: list[str] = []
        self._meanwhile, self._on_progress = meanwhile, on_progress
        self.ensemble = BrightEnsemble(settings, device=device, error=error)
        self.plan = plan_of(cohort, out, self.ensemble)

    def outcomes(self, monkeypatch: pytest.MonkeyPatch) -> Outcomes:
        segment = pipeline.segment

        def watched(checked: CheckedCase, *arguments: Any, **options: Any) -> Any:
            self.computed.append(checked.case.name)
            self._meanwhile(checked.case.name)
            return segment(checked, *arguments, **options)

        monkeypatch.setattr(pipeline, "segment", watched)

        return segment_cases(self.plan, self.ensemble, on_warning=self.warnings.append, on_progress=self._on_progress)


def by_name(outcomes: Iterable[tuple[PlannedCase, Outcome]]) -> dict[str, Outcome]:
    """What came of each case; none may come twice."""
    listed = [(planned.case.name, outcome) for planned, outcome in outcomes]
    assert max(Counter(name for name, _ in listed).values(), default=0) <= 1
    return dict(listed)


def done(outcomes: Iterable[tuple[PlannedCase, Outcome]]) -> set[str]:
    return {name for name, outcome in by_name(outcomes).items() if isinstance(outcome, CaseResult)}


def left_out(outcomes: dict[str, Outcome]) -> set[str]:
    return {name for name, outcome in outcomes.items() if isinstance(outcome, CaseResult) and outcome.left_out}


def assert_whole(out: Path) -> set[str]:
    """Every label map has its own sidecar, and there is nothing else; their names."""
    files = {path.name for path in out.iterdir()} if out.exists() else set()
    names = {name.removesuffix(".nii.gz") for name in files if name.endswith(".nii.gz")}
    assert files == {f"{name}{suffix}" for name in names for suffix in (".nii.gz", ".json")}
    for name in names:
        document = read_sidecar(out / f"{name}.json")
        assert document is not None
        assert document["output_sha256"] == file_sha256(out / f"{name}.nii.gz")
    return names


def waiting(event: threading.Event) -> Callable[..., None]:
    """A function that returns as soon as something has happened."""

    def wait(*_: object) -> None:
        assert event.wait(PATIENCE_S)

    return wait


class Reading:
    """Every case that begins to be read, in the order in which it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, instead: dict[str, BaseException] | None = None) -> None:
        self.names: list[str] = []
        self.checked: list[weakref.ref[CheckedCase]] = []
        read = pipeline.read_case

        def read_case(case: Case, **options: Any) -> CheckedCase:
            self.names.append(case.name)
            if instead and case.name in instead:
                raise instead[case.name]
            checked = read(case, **options)
            self.checked.append(weakref.ref(checked))
            return checked

        monkeypatch.setattr(pipeline, "read_case", read_case)


def during_writing(monkeypatch: pytest.MonkeyPatch, do: Callable[[str], object]) -> None:
    """Call `do` with the name of every case that begins to be written."""
    write = OutputFiles.write

    def watched(files: OutputFiles, *arguments: Any, **options: Any) -> dict[str, Any]:
        do(files.label_map.name.removesuffix(".nii.gz"))
        return write(files, *arguments, **options)

    monkeypatch.setattr(OutputFiles, "write", watched)


def finished_elsewhere(finished: Path, out: Path, *names: str) -> None:
    """The outputs of cases, as another run publishes them."""
    out.mkdir(exist_ok=True)
    for name in names:
        for suffix in (".nii.gz", ".json"):
            shutil.copyfile(finished / f"{name}{suffix}", out / f"{name}{suffix}")


def failing_at(wanted: str, error: BaseException, *, now: bool) -> Callable[..., None]:
    """A function of a case's name that raises the error for one of them; never unless `now`."""

    def fail(name: str, *_: object) -> None:
        if now and name == wanted:
            raise error

    return fail


# All cases


def test_every_case_is_segmented_once_in_order_and_its_progress_told(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, tuple[int, int]] = {}
    reading = Reading(monkeypatch)
    run = Run(cohort, tmp_path / "out", on_progress=lambda name, *slices: told.__setitem__(name, slices))
    assert run.ensemble.opened == 0
    assert done(run.outcomes(monkeypatch)) == set(NAMES)
    assert (run.computed, run.ensemble.opened) == (NAMES, 1)
    assert told == dict.fromkeys(NAMES, (6, 6))
    assert len(reading.names) == N_CASES
    assert assert_whole(tmp_path / "out") == set(NAMES)


@pytest.mark.parametrize("broken", [[0, 1, 3], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]], ids=str)
def test_a_broken_case_does_not_stop_the_rest_and_needs_no_network(
    broken: list[int], own_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = {f"case_{n}": spoil(own_cohort / f"case_{n}") for n in broken}
    run = Run(own_cohort, tmp_path / "out")
    outcomes = by_name(run.outcomes(monkeypatch))
    assert outcomes.keys() == set(NAMES)
    errors = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, CaseError)}
    assert errors.keys() == spoiled.keys()
    assert all(f"{spoiled[name]}: is truncated" in str(error) for name, error in errors.items())
    assert assert_whole(tmp_path / "out") == set(NAMES) - spoiled.keys()
    assert run.ensemble.opened == (len(broken) < N_CASES)


def test_an_output_that_cannot_be_written_fails_its_case_alone(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(name: str) -> None:
        if name == "case_2":
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out/case_2.nii.gz").mkdir()

    outcomes = by_name(Run(cohort, tmp_path / "out", meanwhile=block).outcomes(monkeypatch))
    assert isinstance(outcomes["case_2"], OutputError)
    assert sum(isinstance(outcome, CaseResult) for outcome in outcomes.values()) == N_CASES - 1


@pytest.mark.parametrize("step", ["read", "compute", "write"])
def test_want_of_memory_fails_its_case_alone(step: str, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exhausted = MemoryError()
    Reading(monkeypatch, instead={"case_1": exhausted} if step == "read" else None)
    during_writing(monkeypatch, failing_at("case_1", exhausted, now=step == "write"))
    run = Run(cohort, tmp_path / "out", on_progress=failing_at("case_1", exhausted, now=step == "compute"))
    outcomes = by_name(run.outcomes(monkeypatch))
    assert isinstance(outcomes["case_1"], DeviceError)
    assert str(outcomes["case_1"]).startswith("case_1: this machine's memory does not suffice")
    assert assert_whole(tmp_path / "out") == set(NAMES) - {"case_1"}


def test_warnings_name_their_case(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(cohort, tmp_path / "out", replace(SETTINGS, min_volume_ml=1000))
    assert done(run.outcomes(monkeypatch)) == set(NAMES)
    assert run.warnings == [f"{name}: no tumour was found: every voxel is labelled background" for name in NAMES]


def test_strict_lets_cases_fail_whose_label_map_is_likely_wrong_and_writes_nothing_of_them(
    own_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(np.roll(images(1)[Modality.FLAIR], 3, axis=0), own_cohort / "case_1/case_1_flair.nii.gz")
    out = tmp_path / "out"
    assert done(outcomes_of(own_cohort, out)) == set(NAMES)
    codes = {name: [each["code"] for each in (read_sidecar(out / f"{name}.json") or {})["warnings"]] for name in NAMES}
    assert (codes["case_0"], codes["case_1"][0]) == (["large-tumour"], "different-brains")
    wrong = {name for name, found in codes.items() if found}
    strict = replace(SETTINGS, strict=True)
    run = Run(own_cohort, tmp_path / "strict", strict)
    outcomes = by_name(run.outcomes(monkeypatch))
    assert {name for name, outcome in outcomes.items() if isinstance(outcome, CaseError)} == wrong
    assert str(outcomes["case_1"]).endswith("(strict: the warning different-brains is a failure)")
    assert "case_1" not in run.computed
    assert assert_whole(tmp_path / "strict") == set(NAMES) - wrong
    before = contents(out)
    resumed = by_name(outcomes_of(own_cohort, out, replace(strict, skip_existing=True)))
    assert left_out(resumed) == set(NAMES) - wrong
    assert all(isinstance(resumed[name], CaseError) for name in wrong)
    assert contents(out) == before


# Bounds


@contextmanager
def running(outcomes: Outcomes, release: threading.Event) -> Iterator[None]:
    """A run in a thread, which something holds up until it is released; then every case is done."""
    listed: list[tuple[PlannedCase, Outcome]] = []
    thread = threading.Thread(target=lambda: listed.extend(outcomes))
    thread.start()
    try:
        yield
    finally:
        release.set()
        thread.join()
    assert done(listed) == set(NAMES)


@pytest.mark.parametrize(
    ("threads", "most"),
    [(1, 1 + 2), (8, 1 + 3)],  # one in hand, and waiting one for each reader, of which each takes 4 CPUs, and one more
)
def test_no_more_is_read_ahead_than_is_needed(
    threads: int, most: int, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, release = Reading(monkeypatch), threading.Event()
    run = Run(cohort, tmp_path / "out", replace(SETTINGS, threads=threads), meanwhile=waiting(release))
    with running(run.outcomes(monkeypatch), release):
        wait_until(lambda: len(reading.checked) >= most)
        time.sleep(STEADY_S)
        assert len(reading.names) == most


@pytest.mark.parametrize(("device", "most"), [("cpu", 1), ("cuda:0", 2 + 1)])  # on a GPU one a writer, and one more
def test_no_more_is_computed_than_can_be_written(
    device: str, most: int, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    during_writing(monkeypatch, waiting(release))
    run = Run(cohort, tmp_path / "out", device=device)
    with running(run.outcomes(monkeypatch), release):
        wait_until(lambda: len(run.computed) >= most)
        time.sleep(STEADY_S)
        assert len(run.computed) == most


def test_slices_are_let_go_when_their_case_is_written(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch)
    held: list[object] = []
    for planned, _ in Run(cohort, tmp_path / "out").outcomes(monkeypatch):
        if planned.case.name == NAMES[-1]:
            held = [checked() for checked in reading.checked[:2]]
    assert held == [None, None]


# Ends before the end


def test_a_run_that_is_closed_writes_what_it_is_writing_and_reads_no_more(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, begun = Reading(monkeypatch), threading.Event()

    def slowly(name: str) -> None:
        if name == "case_1":
            begun.set()
            time.sleep(3 * STEADY_S)

    during_writing(monkeypatch, lambda name: waiting(begun)() if name == "case_0" else slowly(name))
    outcomes = Run(cohort, tmp_path / "out").outcomes(monkeypatch)
    assert next(outcomes)[0].case.name == "case_0"
    outcomes.close()
    assert {"case_0", "case_1"} <= assert_whole(tmp_path / "out") <= {"case_0", "case_1", "case_2"}
    n_read = len(reading.names)
    assert n_read < N_CASES
    time.sleep(STEADY_S)
    assert len(reading.names) == n_read


FAULT, INTERRUPTION, LOST_DEVICE = ZeroDivisionError(), KeyboardInterrupt(), LostDeviceError("device cuda:0: failure")


@pytest.mark.parametrize(
    ("step", "failing", "error"),
    [
        *(("read", "case_3", error) for error in (FAULT, INTERRUPTION)),
        *(("compute", "case_3", error) for error in (FAULT, INTERRUPTION, LOST_DEVICE)),
        *(("write", "case_0", error) for error in (FAULT, INTERRUPTION)),
        *(("tell", "case_2", error) for error in (FAULT, INTERRUPTION, LOST_DEVICE)),
    ],
)
def test_a_fault_an_interruption_or_a_lost_device_ends_the_run(
    step: str, failing: str, error: BaseException, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Reading(monkeypatch, instead={failing: error} if step == "read" else None)
    during_writing(monkeypatch, failing_at(failing, error, now=step == "write"))
    run = Run(
        cohort,
        tmp_path / "out",
        meanwhile=failing_at(failing, error, now=step == "compute"),
        on_progress=failing_at(failing, error, now=step == "tell"),
    )
    with pytest.raises(type(error)):
        list(run.outcomes(monkeypatch))
    assert failing not in assert_whole(tmp_path / "out")


def test_a_network_that_cannot_be_opened_ends_the_run(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(cohort, tmp_path / "out", error=DeviceError("device cuda:5: there is none"))
    with pytest.raises(DeviceError, match="cuda:5"):
        list(run.outcomes(monkeypatch))
    assert not (tmp_path / "out").exists()


# Resumed, and beside another run


def test_a_complete_run_again_reads_nothing_and_changes_nothing(
    cohort: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, reading = contents(finished), Reading(monkeypatch)
    run = Run(cohort, finished, RESUMED)
    outcomes = by_name(run.outcomes(monkeypatch))
    assert left_out(outcomes) == set(NAMES)
    assert (reading.names, run.ensemble.opened) == ([], 0)
    for name, outcome in outcomes.items():
        assert isinstance(outcome, CaseResult)
        assert outcome.document == read_sidecar(finished / f"{name}.json")
    assert contents(finished) == before


def test_complete_cases_are_left_out_and_the_others_segmented(
    cohort: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"case_0", "case_2", "case_5"}
    finished_elsewhere(finished, tmp_path / "out", *there)
    run = Run(cohort, tmp_path / "out", RESUMED)
    outcomes = by_name(run.outcomes(monkeypatch))
    assert left_out(outcomes) == there
    assert set(run.computed) == set(NAMES) - there
    assert assert_whole(tmp_path / "out") == set(NAMES)


def test_a_case_that_another_run_is_about_to_publish_is_left_out(
    cohort: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sidecar has appeared, and its label map follows in a moment, which a busy machine may draw out."""
    monkeypatch.setattr("drunet_cli.segmentation.cohort._PUBLISHED_WITHIN_S", 60)
    out = tmp_path / "out"

    def publish(name: str) -> None:
        if name == "case_1":
            out.mkdir(exist_ok=True)
            shutil.copyfile(finished / "case_1.json", out / "case_1.json")
            threading.Timer(STEADY_S, lambda: shutil.copyfile(finished / "case_1.nii.gz", out / "case_1.nii.gz")).start()
            raise OutputError(f"{out}/case_1.json: has appeared while drunet was working; nothing was replaced")

    during_writing(monkeypatch, publish)
    assert left_out(by_name(Run(cohort, out, RESUMED).outcomes(monkeypatch))) == {"case_1"}
    assert assert_whole(out) == set(NAMES)


@pytest.mark.parametrize(
    "settings", [SETTINGS, RESUMED, replace(SETTINGS, overwrite=True)], ids=["plain", "resumed", "overwrite"]
)
@pytest.mark.parametrize("labels", Labels)
@pytest.mark.parametrize("at", ["case_0", "case_1"], ids=["before", "while it is computed"])
def test_outputs_that_appear_meanwhile_are_left_out_if_they_are_the_same(
    at: str, labels: Labels, settings: Settings, cohort: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(name: str) -> None:
        if name == at:
            finished_elsewhere(finished, tmp_path / "out", "case_1")

    run = Run(cohort, tmp_path / "out", replace(settings, labels=labels), meanwhile=meanwhile)
    outcomes = by_name(run.outcomes(monkeypatch))
    is_same = labels is Labels.BRATS2020
    replaced = settings.overwrite and (at == "case_1" or not is_same)
    assert left_out(outcomes) == ({"case_1"} if is_same and not replaced else set())
    assert ("case_1" in run.computed) == (at == "case_1" or replaced)
    assert assert_whole(tmp_path / "out") == set(NAMES)
    kept = (tmp_path / "out/case_1.json").read_bytes() == (finished / "case_1.json").read_bytes()
    assert kept != replaced
    errors = {name: str(outcome) for name, outcome in outcomes.items() if isinstance(outcome, OutputError)}
    assert errors.keys() == ({"case_1"} if not is_same and not replaced else set())
    assert all("was made with other label values" in error for error in errors.values())


def claimed(out: Path, name: str, *, pid: int) -> Path:
    """The claim of another process of this host."""
    out.mkdir(exist_ok=True)
    claim = out / f".{name}.nii.gz.claim"
    claim.write_text(f"{socket.gethostname()} {pid}\n")
    return claim


@pytest.mark.usefixtures("label_maps_unjudged")
@pytest.mark.parametrize("waits", [False, True], ids=["ends soon", "ends late"])
@pytest.mark.parametrize("finishes", [True, False], ids=["finishes", "gives up"])
@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, overwrite=True)], ids=["plain", "overwrite"])
def test_a_case_that_another_run_computes_is_left_to_that_run(
    settings: Settings,
    finishes: bool,
    waits: bool,
    cohort: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("drunet_cli.segmentation.cohort._POLL_S", 0.02)
    out = tmp_path / "out"
    claim = claimed(out, "case_1", pid=os.getppid())

    def end() -> None:
        if finishes:
            finished_elsewhere(finished, out, "case_1")
        claim.unlink()

    def meanwhile(name: str) -> None:
        if name == NAMES[-1]:
            threading.Timer(3 * STEADY_S, end).start() if waits else end()

    run = Run(cohort, out, settings, meanwhile=meanwhile)
    outcomes = by_name(run.outcomes(monkeypatch))
    assert list(outcomes)[-1] == "case_1"
    assert left_out(outcomes) == ({"case_1"} if finishes else set())
    assert run.computed == [*(name for name in NAMES if name != "case_1"), *([] if finishes else ["case_1"])]
    other = f"process {os.getppid()} on {socket.gethostname()}"
    told = f"case_1: waiting for {other}, which is segmenting it; if that has died, delete {claim}"
    assert run.warnings == ([told] if waits else [])
    assert assert_whole(out) == set(NAMES)


def test_a_case_is_claimed_while_it_is_computed_and_claims_of_killed_runs_count_for_nothing(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[list[str]] = []
    for name in ("case_1", "case_of_another_run"):
        claimed(tmp_path / "out", name, pid=ENDED_PID)
    run = Run(
        cohort, tmp_path / "out", device="cpu", meanwhile=lambda _: claims.append([*map(str, claims_in(tmp_path / "out"))])
    )
    assert done(run.outcomes(monkeypatch)) == set(NAMES)
    assert claims == [[f".{name}.nii.gz.claim"] for name in NAMES]
    assert assert_whole(tmp_path / "out") == set(NAMES)


def claims_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*.claim")]
