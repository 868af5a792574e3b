"""Many cases at once: each comes to its end once, whatever the others do, and no more of them is held than is needed."""

import shutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from drunet_cli.brats import Labels
from drunet_cli.errors import CaseError, DeviceError, DrunetError, LostDeviceError, OutputError
from drunet_cli.io.case import Case
from drunet_cli.io.volumes import file_sha256
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.cohort import segment_cases
from drunet_cli.segmentation.outputs import Target
from drunet_cli.segmentation.pipeline import PreparedCase, Segmentation
from drunet_cli.segmentation.sidecar import read_sidecar
from drunet_cli.segmentation.steps import CaseResult, CaseTask, Network, Outcome
from tests.cli.small_cohort import contents, spoil, write_cases
from tests.segmentation.bright_engine import MAKING, PATIENCE_S, network_of, outcomes_of, tasks_of

N_CASES: Final = 6
NAMES: Final = [f"case_{n}" for n in range(N_CASES)]
STEADY_S: Final = 0.1  # in which a run that is not bounded reads all there is: a case takes some 10 ms

one_or_more_engines = pytest.mark.parametrize("n_engines", [1, 2], ids=["one engine", "two engines"])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases that no test changes."""
    return write_cases(tmp_path_factory.mktemp("cohort"), N_CASES)


@pytest.fixture(scope="module")
def finished(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their outputs, which no test changes."""
    out = tmp_path_factory.mktemp("finished")
    assert_all_done(outcomes_of(tasks_of(cohort, out)))
    return out


@pytest.fixture
def tasks(cohort: Path, tmp_path: Path) -> list[CaseTask]:
    return tasks_of(cohort, tmp_path / "out")


@pytest.fixture
def own_cohort(cohort: Path, tmp_path: Path) -> Path:
    """Cases to be damaged."""
    shutil.copytree(cohort, tmp_path / "cohort")
    return tmp_path / "cohort"


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("drunet-")]


def by_name(outcomes: Iterable[tuple[CaseTask, Outcome]]) -> dict[str, Outcome]:
    """What came of each case; none may come twice."""
    listed = [(task.case.name, outcome) for task, outcome in outcomes]
    assert max(Counter(name for name, _ in listed).values(), default=0) <= 1
    return dict(listed)


def assert_all_done(outcomes: Iterable[tuple[CaseTask, Outcome]]) -> None:
    assert {name for name, outcome in by_name(outcomes).items() if isinstance(outcome, CaseResult)} == set(NAMES)


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


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def waiting(event: threading.Event) -> Callable[..., None]:
    """A function that returns as soon as something has happened."""

    def wait(*_: object) -> None:
        assert event.wait(PATIENCE_S)

    return wait


class Reading:
    """Every case that begins to be read, in the order in which it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, instead: dict[str, BaseException] | None = None) -> None:
        self.names: list[str] = []
        self.prepared: list[weakref.ref[PreparedCase]] = []
        read = pipeline.prepare

        def prepare(case: Case, *, keep_views: bool) -> PreparedCase:
            self.names.append(case.name)
            if case.name in (instead or {}):
                raise (instead or {})[case.name]
            prepared = read(case, keep_views=keep_views)
            self.prepared.append(weakref.ref(prepared))
            return prepared

        monkeypatch.setattr(pipeline, "prepare", prepare)


@dataclass(frozen=True, kw_only=True)
class WatchedTarget(Target):
    """Calls `before` ere it is written."""

    before: Callable[[], None]

    def write(self, segmentation: Segmentation, document: Any) -> dict[str, Any]:
        self.before()
        return super().write(segmentation, document)


def watched(task: CaseTask, before: Callable[[], None]) -> CaseTask:
    return replace(task, target=WatchedTarget(label_map=task.target.label_map, before=before))


# All of them


@pytest.mark.parametrize(("n_engines", "n_cpus"), [(1, 1), (1, 64), (2, 1), (9, 8)])
def test_every_case_is_segmented_exactly_once(n_engines: int, n_cpus: int, tasks: list[CaseTask], tmp_path: Path) -> None:
    computed: Counter[str] = Counter()
    assert_all_done(outcomes_of(tasks, n_engines=n_engines, n_cpus=n_cpus, meanwhile=lambda name: computed.update([name])))
    assert computed == dict.fromkeys(NAMES, 2)  # of full frames a blank slice, and those with brain
    assert assert_whole(tmp_path / "out") == set(NAMES)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_one_engine_keeps_the_order_of_the_cases(device: str, tasks: list[CaseTask], tmp_path: Path) -> None:
    assert [task.case.name for task, _ in outcomes_of(tasks, device=device, n_cpus=8)] == NAMES
    assert assert_whole(tmp_path / "out") == set(NAMES)


def test_a_result_of_a_cpu_is_told_before_the_next_case_is_computed(tasks: list[CaseTask]) -> None:
    computed: list[str] = []
    for task, _ in outcomes_of(tasks, device="cpu", meanwhile=computed.append):
        assert computed[-1] == task.case.name


def test_several_engines_write_the_same_label_maps_as_one(tasks: list[CaseTask], finished: Path, tmp_path: Path) -> None:
    assert_all_done(outcomes_of(tasks, n_engines=2, n_cpus=8))
    for name in NAMES:
        assert (tmp_path / f"out/{name}.nii.gz").read_bytes() == (finished / f"{name}.nii.gz").read_bytes()


@one_or_more_engines
def test_several_engines_compute_at_once(n_engines: int, tasks: list[CaseTask]) -> None:
    meeting = threading.Barrier(n_engines, timeout=PATIENCE_S)

    def meanwhile(_: str) -> None:
        meeting.wait()

    assert_all_done(outcomes_of(tasks, n_engines=n_engines, meanwhile=meanwhile))


@one_or_more_engines
def test_the_network_is_opened_once_and_not_before_a_case_has_been_read(
    n_engines: int, tasks: list[CaseTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, opened = Reading(monkeypatch), []

    def open_network() -> Network:
        opened.append(len(reading.prepared))
        return network_of(n_engines)

    assert_all_done(segment_cases(tasks, open_network, n_cpus=1))
    (n_read,) = opened
    assert n_read >= 1


def test_no_case_is_no_work(tmp_path: Path) -> None:
    assert list(segment_cases([], never_opened, n_cpus=4)) == []


@one_or_more_engines
def test_progress_is_told_by_case_up_to_its_last_slice(n_engines: int, tasks: list[CaseTask]) -> None:
    told: dict[str, list[tuple[int, int]]] = {name: [] for name in NAMES}
    list(outcomes_of(tasks, n_engines=n_engines, on_progress=lambda name, done, total: told[name].append((done, total))))
    assert {name: steps[-1] for name, steps in told.items()} == dict.fromkeys(NAMES, (6, 6))


# Broken ones among them


@one_or_more_engines
@pytest.mark.parametrize("broken", [[0, 1, 3], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]], ids=str)
def test_a_broken_case_does_not_stop_the_rest(broken: list[int], n_engines: int, own_cohort: Path, tmp_path: Path) -> None:
    spoiled = {f"case_{n}": spoil(own_cohort / f"case_{n}") for n in broken}
    outcomes = by_name(outcomes_of(tasks_of(own_cohort, tmp_path / "out"), n_engines=n_engines))
    assert outcomes.keys() == set(NAMES)
    errors = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, DrunetError)}
    assert errors.keys() == spoiled.keys()
    for name, error in errors.items():
        assert isinstance(error, CaseError)
        assert f"{spoiled[name]}: is truncated" in str(error)
    assert assert_whole(tmp_path / "out") == set(NAMES) - spoiled.keys()


def test_the_network_is_not_opened_where_no_case_can_be_read(own_cohort: Path, tmp_path: Path) -> None:
    for name in NAMES:
        spoil(own_cohort / name)
    outcomes = by_name(segment_cases(tasks_of(own_cohort, tmp_path / "out"), never_opened, n_cpus=8))
    assert {name for name, outcome in outcomes.items() if isinstance(outcome, CaseError)} == set(NAMES)


def test_the_network_is_not_opened_where_all_is_there(cohort: Path, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    outcomes = by_name(segment_cases(tasks_of(cohort, finished, skip_if=MAKING), never_opened, n_cpus=1))
    assert outcomes.keys() == set(NAMES)
    assert all(isinstance(outcome, CaseResult) and outcome.left_out for outcome in outcomes.values())
    assert contents(finished) == before


@one_or_more_engines
def test_an_output_that_cannot_be_written_fails_its_case_alone(n_engines: int, tasks: list[CaseTask], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/case_2.nii.gz").mkdir()
    outcomes = by_name(outcomes_of(tasks, n_engines=n_engines))
    assert isinstance(outcomes["case_2"], OutputError)
    assert sum(isinstance(outcome, CaseResult) for outcome in outcomes.values()) == N_CASES - 1


@one_or_more_engines
@pytest.mark.parametrize("step", ["read", "compute", "write"])
def test_want_of_memory_fails_its_case_alone(
    step: str, n_engines: int, tasks: list[CaseTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust() -> None:
        raise MemoryError

    def compute(name: str) -> None:
        if step == "compute" and name == "case_1":
            exhaust()

    if step == "read":
        Reading(monkeypatch, instead={"case_1": MemoryError()})
    if step == "write":
        tasks[1] = watched(tasks[1], exhaust)
    outcomes = by_name(outcomes_of(tasks, n_engines=n_engines, meanwhile=compute))
    assert isinstance(outcomes["case_1"], DeviceError)
    assert str(outcomes["case_1"]).startswith("case_1: this machine's memory does not suffice")
    assert assert_whole(tmp_path / "out") == set(NAMES) - {"case_1"}


# Bounds


@pytest.mark.parametrize(
    ("n_engines", "n_cpus", "most"),
    # One in hand for each engine, and waiting one for each reader, of which each takes 4 CPUs, and one more.
    [(1, 1, 1 + 2), (1, 8, 1 + 3), (2, 1, 2 + 2), (2, 8, 2 + 3)],
)
def test_no_more_is_read_ahead_than_is_needed(
    n_engines: int, n_cpus: int, most: int, tasks: list[CaseTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, release = Reading(monkeypatch), threading.Event()
    outcomes: list[tuple[CaseTask, Outcome]] = []
    run = threading.Thread(
        target=lambda: outcomes.extend(outcomes_of(tasks, n_engines=n_engines, n_cpus=n_cpus, meanwhile=waiting(release)))
    )
    run.start()
    try:
        wait_until(lambda: len(reading.prepared) >= most)
        time.sleep(STEADY_S)
        assert len(reading.names) == most
    finally:
        release.set()
        run.join()
    assert_all_done(outcomes)


@pytest.mark.parametrize(
    ("device", "n_engines", "most"),
    # On a CPU one at a time. Else as many as there are writers, and one more; of several engines, one more for each, and one in
    # the hands of each.
    [("cpu", 1, 1), ("cuda:0", 1, 2 + 1), ("cuda:0", 2, 2 + 2 + 2)],
)
def test_no_more_is_computed_than_can_be_written(device: str, n_engines: int, most: int, cohort: Path, tmp_path: Path) -> None:
    release, computed = threading.Event(), set[str]()
    again = [replace(task.case, name=f"again_{task.case.name}") for task in tasks_of(cohort, tmp_path)]
    cases = [*(task.case for task in tasks_of(cohort, tmp_path)), *again]
    held = [watched(CaseTask(case, Target(label_map=tmp_path / f"out/{case.name}.nii.gz")), waiting(release)) for case in cases]
    outcomes: list[tuple[CaseTask, Outcome]] = []
    run = threading.Thread(
        target=lambda: outcomes.extend(outcomes_of(held, n_engines=n_engines, device=device, n_cpus=8, meanwhile=computed.add))
    )
    run.start()
    try:
        wait_until(lambda: len(computed) >= most)
        time.sleep(STEADY_S)
        assert len(computed) == most
    finally:
        release.set()
        run.join()
    assert len(by_name(outcomes)) == len(cases)


@one_or_more_engines
def test_slices_are_let_go_when_their_case_is_written(
    n_engines: int, tasks: list[CaseTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Reading(monkeypatch)
    held = []
    for task, _ in outcomes_of(tasks, n_engines=n_engines):
        if task.case.name == NAMES[-1]:
            held = [prepared() for prepared in reading.prepared[:2]]
    assert held == [None, None]


# Ends before the end


@one_or_more_engines
def test_a_run_that_is_closed_writes_what_it_is_writing_and_reads_no_more(
    n_engines: int, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release, reading = threading.Event(), threading.Event(), Reading(monkeypatch)
    tasks = tasks_of(cohort, tmp_path / "out")
    tasks += [replace(task, case=replace(task.case, name=f"more_{task.case.name}")) for task in tasks]
    tasks[0] = watched(tasks[0], waiting(begun))

    def slowly() -> None:
        begun.set()
        time.sleep(3 * STEADY_S)

    tasks[1] = watched(tasks[1], slowly)
    early = {"case_0", "case_1", "case_2"}
    wait = waiting(release)
    outcomes = outcomes_of(tasks, n_engines=n_engines, meanwhile=lambda name: None if name in early else wait())
    for task, _ in outcomes:
        if task.case.name == "case_0":
            break
    threading.Timer(STEADY_S, release.set).start()
    outcomes.close()
    assert {"case_0", "case_1"} <= assert_whole(tmp_path / "out") <= early
    assert len(reading.names) < len(tasks)
    n_read = len(reading.names)
    time.sleep(STEADY_S)
    assert len(reading.names) == n_read


@one_or_more_engines
@pytest.mark.parametrize(
    ("step", "failing"),
    [("read", "case_0"), ("read", "case_3"), ("compute", "case_3"), ("write", "case_0"), ("tell", "case_3")],
)
def test_a_fault_of_drunet_ends_the_run_and_is_raised(
    step: str, failing: str, n_engines: int, tasks: list[CaseTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, wanted: str) -> None:
        if (name, step) == (failing, wanted):
            raise ZeroDivisionError(failing)

    if step == "read":
        Reading(monkeypatch, instead={failing: ZeroDivisionError(failing)})
    n = NAMES.index(failing)
    tasks[n] = watched(tasks[n], lambda: fail(failing, "write"))
    outcomes = outcomes_of(
        tasks,
        n_engines=n_engines,
        meanwhile=lambda name: fail(name, "compute"),
        on_progress=lambda name, *_: fail(name, "tell"),
    )
    with pytest.raises(ZeroDivisionError, match=failing):
        list(outcomes)
    assert failing not in assert_whole(tmp_path / "out")


@one_or_more_engines
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_that_a_listener_raises_ends_the_run(
    interruption: type[BaseException], n_engines: int, tasks: list[CaseTask], tmp_path: Path
) -> None:
    def tell(name: str, *_: int) -> None:
        if name == "case_2":
            raise interruption

    with pytest.raises(interruption):
        list(outcomes_of(tasks, n_engines=n_engines, on_progress=tell))
    assert "case_2" not in assert_whole(tmp_path / "out")


def test_a_network_that_cannot_be_opened_ends_the_run(tasks: list[CaseTask], tmp_path: Path) -> None:
    def open_network() -> Network:
        raise DeviceError("device cuda:5: there is none")

    with pytest.raises(DeviceError, match="cuda:5"):
        list(segment_cases(tasks, open_network, n_cpus=8))
    assert not (tmp_path / "out").exists()


# Beside another run


def finished_elsewhere(finished: Path, out: Path, name: str) -> None:
    """The outputs of a case, as another run publishes them."""
    out.mkdir(exist_ok=True)
    for suffix in (".nii.gz", ".json"):
        shutil.copyfile(finished / f"{name}{suffix}", out / f"{name}{suffix}")


@one_or_more_engines
def test_a_case_that_another_run_finishes_while_it_is_computed_is_left_out(
    n_engines: int, tasks: list[CaseTask], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def meanwhile(name: str) -> None:
        if name == "case_1":
            finished_elsewhere(finished, out, name)

    outcomes = by_name(outcomes_of(tasks, n_engines=n_engines, meanwhile=meanwhile, making=MAKING))
    assert {name for name, outcome in outcomes.items() if isinstance(outcome, CaseResult) and outcome.left_out} == {"case_1"}
    assert assert_whole(out) == set(NAMES)
    assert (out / "case_1.json").read_bytes() == (finished / "case_1.json").read_bytes()


def test_a_case_that_another_run_has_finished_since_it_was_read_is_not_computed(
    tasks: list[CaseTask], finished: Path, tmp_path: Path
) -> None:
    computed = set[str]()

    def meanwhile(name: str) -> None:
        if not computed:
            finished_elsewhere(finished, tmp_path / "out", "case_1")
        computed.add(name)

    outcomes = by_name(outcomes_of(tasks, meanwhile=meanwhile, making=MAKING))
    assert isinstance(outcomes["case_1"], CaseResult)
    assert outcomes["case_1"].left_out
    assert computed == set(NAMES) - {"case_1"}


def test_a_case_whose_sidecar_another_run_is_about_to_publish_is_left_out(
    tasks: list[CaseTask], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def meanwhile(name: str) -> None:
        if name == "case_1":
            finished_elsewhere(finished, out, name)
            (out / "case_1.json").rename(out / ".case_1.json.elsewhere.77.tmp")

    outcomes = by_name(outcomes_of(tasks, meanwhile=meanwhile, making=MAKING))
    assert isinstance(outcomes["case_1"], CaseResult), outcomes["case_1"]
    assert outcomes["case_1"].left_out
    assert assert_whole(out) == set(NAMES)


class TakenForKilled(Target):
    """Another run, which has just begun, publishes the sidecar before this one can."""

    def write(self, segmentation: Segmentation, document: Any) -> dict[str, Any]:
        super().write(segmentation, document)
        raise OutputError(f"{self.sidecar_path}: has appeared while drunet was working; nothing was replaced")


def test_a_case_whose_sidecar_another_run_has_published_for_it_is_done(tasks: list[CaseTask], tmp_path: Path) -> None:
    tasks[1] = replace(tasks[1], target=TakenForKilled(label_map=tasks[1].target.label_map))
    outcomes = by_name(outcomes_of(tasks))
    assert outcomes["case_1"] == CaseResult(read_sidecar(tmp_path / "out/case_1.json") or {})


@one_or_more_engines
@pytest.mark.parametrize("making", [None, replace(MAKING, labels=Labels.BRATS2023)], ids=["unasked", "other labels"])
def test_outputs_that_appear_meanwhile_are_not_replaced_and_fail_their_case(
    making: Any, n_engines: int, tasks: list[CaseTask], finished: Path, tmp_path: Path
) -> None:
    def meanwhile(name: str) -> None:
        if name == "case_1":
            finished_elsewhere(finished, tmp_path / "out", name)

    outcomes = by_name(outcomes_of(tasks, n_engines=n_engines, meanwhile=meanwhile, making=making))
    assert isinstance(outcomes["case_1"], OutputError)
    assert "exists already" in str(outcomes["case_1"])
    assert sum(isinstance(outcome, CaseResult) for outcome in outcomes.values()) == N_CASES - 1
    assert (tmp_path / "out/case_1.json").read_bytes() == (finished / "case_1.json").read_bytes()


# What is there before


def test_complete_cases_are_left_out_and_the_others_segmented(cohort: Path, finished: Path, tmp_path: Path) -> None:
    out, computed = tmp_path / "out", set[str]()
    for name in ("case_0", "case_2", "case_5"):
        finished_elsewhere(finished, out, name)
    outcomes = by_name(outcomes_of(tasks_of(cohort, out, skip_if=MAKING), meanwhile=computed.add))
    left_out = {name for name, outcome in outcomes.items() if isinstance(outcome, CaseResult) and outcome.left_out}
    assert left_out == {"case_0", "case_2", "case_5"}
    assert computed == set(NAMES) - left_out
    assert assert_whole(out) == set(NAMES)


def test_the_object_of_a_case_that_is_left_out_is_that_of_its_sidecar(cohort: Path, finished: Path) -> None:
    for task, outcome in segment_cases(tasks_of(cohort, finished, skip_if=MAKING), never_opened, n_cpus=1):
        assert isinstance(outcome, CaseResult)
        assert outcome.document == read_sidecar(task.target.sidecar_path)


def never_opened() -> Network:
    raise AssertionError("the network was opened")


@one_or_more_engines
def test_a_lost_device_ends_the_run(n_engines: int, cohort: Path, tmp_path: Path) -> None:
    """Else it would fail every case that is left, each within a moment."""

    def meanwhile(_: str) -> None:
        raise LostDeviceError("device cuda:0: unspecified launch failure")

    with pytest.raises(LostDeviceError):
        list(outcomes_of(tasks_of(cohort, tmp_path / "out"), n_engines=n_engines, meanwhile=meanwhile))
