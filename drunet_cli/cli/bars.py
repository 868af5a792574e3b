"""Bars that move on a terminal: slices and cases, a download, a training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

    from drunet_cli.cli.console import Screen


def progress(screen: "Screen", *columns: "ProgressColumn") -> "Progress":
    """A bar of these columns, to be started; it leaves nothing behind."""
    from rich.progress import Progress

    # Redirected, results would go to stderr with the bar.
    return Progress(*columns, console=screen.console, transient=True, redirect_stdout=False, redirect_stderr=False)


class SegmentationBar:
    """The bar of a run of cases, on a terminal that is there; it appears with the first slices."""

    def __init__(self, screen: "Screen", n_cases: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        of_one = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("slices"))
        of_many = (BarColumn(), TextColumn("{task.fields[counted]}/{task.total} cases"), TextColumn("{task.description}"))
        self._progress = progress(screen, *(of_one if n_cases == 1 else of_many), TimeRemainingColumn())
        self._n_cases = n_cases
        self._n_ended = 0
        self._parts: dict[str, float] = {}  # of cases in hand
        self._task: TaskID | None = None

    def show(self, name: str, done: int, total: int) -> None:
        """So many slices of a case are done."""
        if self._task is None:
            self._task = self._progress.add_task(name, total=total if self._n_cases == 1 else self._n_cases, counted=0)
            self._progress.start()
        self._parts[name] = done / total
        slices = f"{name} {done}/{total} slices"
        if self._n_cases == 1:
            self._progress.update(self._task, description=name, completed=done)
        else:
            self._draw(slices)

    def count(self, name: str) -> None:
        """A case has come to its end, whatever it was."""
        self._n_ended += 1
        self._parts.pop(name, None)
        if self._n_cases > 1:
            self._draw()

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def _draw(self, description: str | None = None) -> None:
        if self._task is not None:
            completed = self._n_ended + sum(self._parts.values())
            self._progress.update(self._task, description=description, completed=completed, counted=self._n_ended)


class DownloadBar:
    """The bar of one download, on a terminal that is there."""

    def __init__(self, screen: "Screen", name: str, n_bytes: float) -> None:
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = progress(screen, *columns)
        self._task = self._progress.add_task(name, total=n_bytes)
        self._progress.start()

    def move(self, n_bytes: int, n_total: int | None) -> None:
        """So many bytes are there."""
        self._progress.update(self._task, completed=n_bytes, total=n_total)

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()


class TrainingBar:
    """One bar, of whatever a training is at."""

    def __init__(self, screen: "Screen") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(compact=True),
        )
        self._progress = progress(screen, *columns)
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def show(self, what: str, done: int, total: int, state: str = "") -> None:
        """Show this alone, which keeps its own time."""
        kind = what.partition(" ")[0]
        if kind not in self._tasks:
            self._tasks[kind] = self._progress.add_task(what, total=total, state=state)
        for other, task in self._tasks.items():
            self._progress.update(task, visible=other == kind)
        self._progress.update(self._tasks[kind], description=what, completed=done, total=total, state=state)

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()
