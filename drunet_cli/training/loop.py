"""The training itself: steps, epochs, validation, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final, NoReturn, Protocol

import torch
from torch import Tensor

from drunet_cli.errors import DeviceError, DivergedError
from drunet_cli.network.engine import Precision, WindowMode
from drunet_cli.network.torch_engine import TorchEngine, check_device_fault, is_out_of_memory
from drunet_cli.training.batches import BatchPlan, Planner, SliceSource
from drunet_cli.training.distributed import Team
from drunet_cli.training.feed import Feed
from drunet_cli.training.history import Epoch, EventWriter, History, draw_curves, write_tables
from drunet_cli.training.learner import Learner, learning_rate
from drunet_cli.training.recipe import Length, Recipe
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.state import Progress, write_state
from drunet_cli.training.validation import CaseScore, HeldOut, score_all
from drunet_cli.training.watcher import Watcher
from drunet_cli.weights.checkpoint import Checkpoint, Metadata, State, write_checkpoint


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Writes for all processes in the first of them; does nothing in the others. n_steps: of the whole training.

    Every method raises OutputError.
    """

    run: RunFolder
    learner: Learner
    metadata: Metadata
    events: EventWriter
    n_steps: int
    is_first: bool

    def publish(self, epoch: Epoch, weights: State, progress: Progress) -> None:
        """Weights first, then the state that says that the epoch is done, then what is made from it."""
        if not self.is_first:
            return
        metadata = replace(self.metadata, origin=f"{self.metadata.origin}, {epoch.in_words(self.n_steps)}")
        if epoch.is_best:
            write_checkpoint(self.run.best, weights, metadata, overwrite=True)
        write_checkpoint(self.run.last, weights, metadata, overwrite=True)
        self.save_state(progress)
        self.tell(progress.history)
        self.events.add(epoch)

    def save_state(self, progress: Progress) -> None:
        """Write what --resume needs."""
        if self.is_first:
            write_state(self.run.state, self.learner, progress)

    def tell(self, history: History) -> None:
        """Write the history for people."""
        if self.is_first:
            write_tables(history, self.run.metrics, self.run.cases)
            draw_curves(history, self.run.curves)


class RecentLoss:
    """The loss of some steps ago. On a GPU it is fetched without waiting for what is still computed."""

    def __init__(self, device: torch.device) -> None:
        self.value: float | None = None
        self._on_gpu = device.type == "cuda"
        if self._on_gpu:
            self._copy = torch.empty((), pin_memory=True)
            self._copied: torch.cuda.Event | None = None

    @property
    def is_finite(self) -> bool:
        """Whether it was a number, as far as is known."""
        return self.value is None or math.isfinite(self.value)

    def look_at(self, loss: Tensor) -> None:
        """Learn of this loss, now or when it is there."""
        if not self._on_gpu:
            self.value = float(loss)
            return
        if self._copied is not None:
            if not self._copied.query():  # type: ignore[no-untyped-call]
                return
            self.value = float(self._copy)
        self._copy.copy_(loss, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()


# How long a killed run may have worked in vain, however long its epochs are.
_SAVE_EVERY_S: Final = 15 * 60.0
_LOSS_EVERY_STEPS: Final = 5


class Case(SliceSource, HeldOut, Protocol):
    """One case of the store."""


class _Wish(IntEnum):
    """What a process wants to do before the next step; the strongest wish is what all do."""

    GO_ON = 0
    SAVE = 1
    STOP = 2
    GIVE_UP = 3


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that a training is made of. precision: what was trained in; threads: that make batches.

    should_stop: asked at every step and between slices of a validation; the training then saves its state and ends.
    """

    recipe: Recipe
    run: RunFolder
    learner: Learner
    team: Team
    train: Sequence[Case]
    validation: Sequence[Case]
    metadata: Metadata
    length: Length
    precision: Precision = Precision.FLOAT32
    threads: int = 1
    watcher: Watcher = field(default_factory=Watcher)
    should_stop: Callable[[], bool] = lambda: False


def train(training: Training, progress: Progress) -> bool:
    """Train from where `progress` is to the end; False when it was asked to stop, with the state saved.

    Raises DivergedError when loss or weights are no longer finite, DeviceError when memory does not suffice. Files of the last
    epoch that ended well stay.
    """
    is_first = training.team.processes.is_first
    with EventWriter(training.run.events if is_first else None, after_step=progress.step) as events:
        publication = Publication(
            run=training.run,
            learner=training.learner,
            metadata=training.metadata,
            events=events,
            n_steps=training.length.n_steps,
            is_first=is_first,
        )
        return _Loop(training, progress, publication).run()


class _Loop:
    def __init__(self, training: Training, progress: Progress, publication: Publication) -> None:
        self._t, self._progress, self._publication = training, progress, publication
        device = training.learner.device
        # MPS has no float64.
        self._losses = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        self._recent = RecentLoss(device)
        self._first, self._begin = progress.step, time.perf_counter()

    def run(self) -> bool:
        t, progress = self._t, self._progress
        planner = Planner(t.train, t.recipe.batches, t.recipe.augmentation, seed=t.recipe.seed)
        feed = Feed(
            planner,
            t.train,
            first=progress.step,
            end=t.length.n_steps,
            device=t.learner.device,
            part=t.learner.part,
            threads=t.threads,
        )
        if progress.history.epochs:  # whoever was killed after an epoch may not have told of it
            self._publication.tell(progress.history)
        with closing(feed):
            batches = iter(feed)
            while True:
                if self._epoch_is_over() and not self._finish_epoch():
                    return False
                if progress.step >= t.length.n_steps:
                    return True
                if not self._run_steps(batches, feed):
                    return False

    def _epoch_is_over(self) -> bool:
        """Whether the steps of the running epoch are done, and it is not recorded yet."""
        step, per_epoch = self._progress.step, self._t.length.steps_per_epoch
        done = self._t.length.n_epochs if step >= self._t.length.n_steps else step // per_epoch
        return done > len(self._progress.history.epochs)

    def _run_steps(self, batches: Iterator[tuple[BatchPlan, Tensor]], feed: Feed) -> bool:
        """To the end of the epoch; False when asked to stop."""
        t, progress = self._t, self._progress
        end = min((len(progress.history.epochs) + 1) * t.length.steps_per_epoch, t.length.n_steps)
        begin = saved = time.perf_counter()
        first, seconds_before, waited_before = progress.step, progress.seconds, progress.waited_s - feed.waited_s
        self._losses.fill_(progress.losses)
        while progress.step < end:
            now = time.perf_counter()
            wish = _Wish.STOP if t.should_stop() else _Wish.SAVE if now - saved > _SAVE_EVERY_S else _Wish.GO_ON
            wish = _Wish(t.team.agreed(wish if self._recent.is_finite else _Wish.GIVE_UP))
            if wish is _Wish.GIVE_UP:
                self._diverged("the loss")
            if wish is not _Wish.GO_ON:
                self._note(seconds_before + now - begin, waited_before + feed.waited_s)
                self._save_state()
                saved = time.perf_counter()
                if wish is _Wish.STOP:
                    return False
            plan, pixels = next(batches)
            loss = self._step(plan, pixels)
            self._losses += loss
            progress.step += 1
            progress.n_losses += 1
            if progress.step % _LOSS_EVERY_STEPS == 0:
                self._recent.look_at(loss)
            rate = (progress.step - first) * t.recipe.batches.size / (time.perf_counter() - begin)
            t.watcher.stepped(progress.step, t.length.n_steps, loss=self._recent.value, slices_per_s=rate)
        self._note(seconds_before + time.perf_counter() - begin, waited_before + feed.waited_s)
        return True

    def _step(self, plan: BatchPlan, pixels: Tensor) -> Tensor:
        learner = self._t.learner
        try:
            return learner.step(pixels, plan)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                check_device_fault(learner.device, error)
                raise
            size, n = self._t.recipe.batches.size, self._t.team.processes.n
            half = size // (2 * n) * n
            smaller = f"try --batch-size {half}, with --overwrite" if half else "take a smaller --base-width"
            raise DeviceError(f"device {learner.device}: memory does not suffice for a batch of {size}; {smaller}") from error

    def _note(self, seconds: float, waited_s: float) -> None:
        """Take what is known of the running epoch into the progress. Waits for the device."""
        progress = self._progress
        progress.seconds, progress.waited_s = seconds, waited_s
        progress.losses = self._t.team.mean(float(self._losses))
        if not math.isfinite(progress.losses):
            self._diverged("the loss")

    def _diverged(self, what: str) -> NoReturn:
        t, epochs = self._t, self._progress.history.epochs
        kept = (
            f"{t.run.last} holds the weights of epoch {epochs[-1].epoch}" if epochs else "no epoch was complete, none is kept"
        )
        rate = learning_rate(t.recipe.optimiser, step=max(0, self._progress.step - 1), n_steps=t.length.n_steps)
        remedy = f"try a --learning-rate below {t.recipe.optimiser.learning_rate:g}"
        remedy += "" if t.precision is Precision.FLOAT32 else ", or --precision float32"
        message = f"{what} is no longer finite at step {self._progress.step} (learning rate {rate:.3g}); {kept}; {remedy}"
        raise DivergedError(f"{t.run.root}: {message}")

    def _finish_epoch(self) -> bool:
        """Validate, record and save; False when asked to stop meanwhile."""
        t, progress = self._t, self._progress
        if not t.learner.is_finite():
            self._diverged("a weight")
        number = len(progress.history.epochs) + 1
        is_last = progress.step >= t.length.n_steps
        state = self._weights()
        scores: tuple[CaseScore, ...] = ()
        if t.validation and (is_last or number % t.recipe.validation.every_epochs == 0):
            found = self._validate(state)
            if found is None:
                self._save_state()
                return False
            scores = found
        epoch = Epoch(
            epoch=number,
            step=progress.step,
            learning_rate=learning_rate(t.recipe.optimiser, step=progress.step - 1, n_steps=t.length.n_steps),
            loss=progress.losses / progress.n_losses,
            scores=scores,
            is_best=bool(scores or not t.validation) and progress.history.would_be_best(scores),
            seconds=round(progress.seconds, 3),
            slices_per_s=progress.n_losses * t.recipe.batches.size / progress.seconds,
            waiting=progress.waited_s / progress.seconds,
        )
        progress.history = History((*progress.history.epochs, epoch))
        progress.losses, progress.n_losses, progress.seconds, progress.waited_s = 0.0, 0, 0.0, 0.0
        self._publication.publish(epoch, state, progress)
        t.watcher.finished(epoch, t.length.n_epochs, left_s=self._left_s())
        return True

    def _left_s(self) -> float:
        """What the rest will take, at the pace of this session."""
        done = self._progress.step - self._first
        return (time.perf_counter() - self._begin) / done * (self._t.length.n_steps - self._progress.step) if done else 0.0

    def _weights(self) -> State:
        """What would be kept now. The same in all processes."""
        learner = self._t.learner
        self._t.team.follow_first([tensor for name, tensor in learner.averages.items() if "running_" in name])
        return {name: tensor.cpu().contiguous().numpy() for name, tensor in learner.averages.items()}

    def _validate(self, state: State) -> tuple[CaseScore, ...] | None:
        t = self._t
        return score_all(
            t.validation,
            TorchEngine(Checkpoint(metadata=t.metadata, state=state, sha256=""), device=t.learner.device),
            t.team,
            window=WindowMode(t.recipe.window),
            watcher=t.watcher,
            should_stop=t.should_stop,
        )

    def _save_state(self) -> None:
        if not self._t.learner.is_finite():
            self._diverged("a weight")
        self._publication.save_state(self._progress)
