"""The training itself: steps, validation, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, NoReturn

import numpy as np
import torch
from torch import Tensor

from drunet_cli.brats import REGIONS
from drunet_cli.errors import DeviceError, DivergedError
from drunet_cli.evaluation.scores import dice, mask_of
from drunet_cli.host import is_out_of_memory
from drunet_cli.io.geometry import FRAME, AxisFit, Geometry, laid_out
from drunet_cli.network.engine import Engine, Precision, WindowMode
from drunet_cli.network.torch_engine import TorchEngine, check_device_fault
from drunet_cli.segmentation.predict import predict
from drunet_cli.training.batches import BatchPlan, Feed, Planner
from drunet_cli.training.distributed import Team
from drunet_cli.training.history import (
    CaseScore,
    Epoch,
    EventWriter,
    History,
    OnProgress,
    Stage,
    TrainingProgress,
    draw_curves,
    write_tables,
)
from drunet_cli.training.learner import Learner, learning_rate
from drunet_cli.training.recipe import Length
from drunet_cli.training.run_folder import RunFolder, TrainingState, write_state
from drunet_cli.training.store import StoredCase
from drunet_cli.weights.checkpoint import Checkpoint, Metadata, State, write_checkpoint

_SAVE_EVERY_S: Final = 15 * 60.0  # a killed run loses no more work than this, however long its epochs are
_LOSS_EVERY_STEPS: Final = 5


class _Wish(IntEnum):
    """The wish of a process before the next step; all processes follow the strongest wish."""

    GO_ON = 0
    SAVE = 1
    STOP = 2
    GIVE_UP = 3


@dataclass(kw_only=True)
class Training:
    """A training, to be run from the step that `state` has reached to its end.

    train, validation: cases to learn from, and held-out cases. metadata: of the weights, whose origin gains a line for each
    epoch. precision: for messages. feeding_threads: number of threads that make batches.
    should_stop: asked before every step and between slices of a validation; the training then saves its state and ends.
    """

    run: RunFolder
    learner: Learner
    team: Team
    state: TrainingState
    length: Length
    train: Sequence[StoredCase]
    validation: Sequence[StoredCase]
    metadata: Metadata
    precision: Precision
    feeding_threads: int
    on_progress: OnProgress
    should_stop: Callable[[], bool]

    def run_to_end(self) -> bool:
        """Train; False when asked to stop before the end, with the state saved.

        Raises DivergedError when loss or weights are no longer finite, DeviceError when memory does not suffice, OutputError.
        The files of the last epoch that ended well stay.
        """
        recipe, state = self.learner.recipe, self.state
        self._writes = self.team.processes.is_first
        # MPS has no float64.
        dtype = torch.float32 if self.learner.device.type == "mps" else torch.float64
        self._losses = torch.full((), state.losses, dtype=dtype, device=self.learner.device)
        self._recent_loss = _RecentLoss(self.learner.device)
        self._session_begin = state.step, time.perf_counter()
        planner = Planner(self.train, recipe.batches, recipe.augmentation, seed=recipe.seed)
        self._feed = Feed(
            planner,
            self.train,
            first=state.step,
            end=self.length.n_steps,
            device=self.learner.device,
            part=self.learner.part,
            threads=self.feeding_threads,
        )
        events = EventWriter(self.run.events if self._writes else None, after_step=state.step)
        with closing(self._feed), events as self._events:
            return self._run_steps(iter(self._feed))

    def _run_steps(self, batches: Iterator[tuple[BatchPlan, Tensor]]) -> bool:
        state = self.state
        self._start_clocks()
        while True:
            if self._epoch_is_over():
                if not self._finish_epoch():
                    return False
                self._start_clocks()
            if state.step >= self.length.n_steps:
                return True
            wish = self._agree_on_wish()
            if wish is _Wish.GIVE_UP:
                self._raise_diverged("the loss")
            if wish in (_Wish.SAVE, _Wish.STOP):
                self._save_state()
            if wish is _Wish.STOP:
                return False
            plan, pixels = next(batches)
            loss = self._step(plan, pixels)
            self._losses += loss
            state.step += 1
            state.n_losses += 1
            if state.step % _LOSS_EVERY_STEPS == 0:
                self._recent_loss.look_at(loss)
            self._tell_step()

    def _start_clocks(self) -> None:
        now = time.perf_counter()
        self._noted, self._saved, self._waited_s = now, now, self._feed.waited_s
        self._epoch_begin = self.state.step, now

    def _epoch_is_over(self) -> bool:
        """Whether the steps of the running epoch are done, and the epoch is not recorded yet."""
        step = self.state.step
        n_over = self.length.n_epochs if step >= self.length.n_steps else step // self.length.steps_per_epoch
        return n_over > len(self.state.history.epochs)

    def _agree_on_wish(self) -> _Wish:
        wish = _Wish.GO_ON
        if not self._recent_loss.is_finite:
            wish = _Wish.GIVE_UP
        elif self.should_stop():
            wish = _Wish.STOP
        elif time.perf_counter() - self._saved > _SAVE_EVERY_S:
            wish = _Wish.SAVE
        return _Wish(self.team.agree(wish))

    def _step(self, plan: BatchPlan, pixels: Tensor) -> Tensor:
        try:
            with self.team.waiting():  # the backward pass averages the gradients of all processes
                return self.learner.step(pixels, plan)
        except RuntimeError as error:
            device = self.learner.device
            if not is_out_of_memory(error):
                check_device_fault(device, error)
                raise
            size, n = self.learner.recipe.batches.size, self.team.processes.n
            half = size // (2 * n) * n
            smaller = f"try --batch-size {half}, with --overwrite" if half else "take a smaller --base-width"
            raise DeviceError(f"device {device}: memory does not suffice for a batch of {size}; {smaller}") from error

    def _tell_step(self) -> None:
        first, begin = self._epoch_begin
        n_slices = (self.state.step - first) * self.learner.recipe.batches.size
        self.on_progress(
            TrainingProgress(
                stage=Stage.LEARNING,
                done=self.state.step,
                total=self.length.n_steps,
                loss=self._recent_loss.value,
                slices_per_s=n_slices / (time.perf_counter() - begin),
            )
        )

    def _finish_epoch(self) -> bool:
        """Validate, record and save; False when asked to stop meanwhile."""
        state = self.state
        self._note_losses()
        self._check_weights()
        number = len(state.history.epochs) + 1
        is_last = state.step >= self.length.n_steps
        weights = self._weights()
        scores: tuple[CaseScore, ...] = ()
        if self.validation and (is_last or number % self.learner.recipe.validation.every_epochs == 0):
            found = self._validate(weights)
            if found is None:
                self._save_state()
                return False
            scores = found
        epoch = Epoch(
            epoch=number,
            step=state.step,
            learning_rate=self._learning_rate(),
            loss=state.losses / state.n_losses,
            scores=scores,
            is_best=bool(scores or not self.validation) and state.history.would_be_best(scores),
            seconds=round(state.seconds, 3),
            slices_per_s=state.n_losses * self.learner.recipe.batches.size / state.seconds,
            waiting=state.waited_s / state.seconds,
        )
        state.history = History((*state.history.epochs, epoch))
        state.losses, state.n_losses, state.seconds, state.waited_s = 0.0, 0, 0.0, 0.0
        self._losses.zero_()
        if self._writes:
            self._publish(epoch, weights)
        first, begin = self._session_begin
        n_done, n_left = state.step - first, self.length.n_steps - state.step
        self.on_progress(
            TrainingProgress(
                stage=Stage.LEARNING,
                done=state.step,
                total=self.length.n_steps,
                epoch=epoch,
                n_epochs=self.length.n_epochs,
                left_s=(time.perf_counter() - begin) / n_done * n_left if n_done else 0.0,
            )
        )
        return True

    def _publish(self, epoch: Epoch, weights: State) -> None:
        """Write the weights, the tables and curves, and last the state, which says that the epoch is done."""
        metadata = replace(self.metadata, origin=f"{self.metadata.origin}, {epoch.in_words(self.length.n_steps)}")
        if epoch.is_best:
            write_checkpoint(self.run.best, weights, metadata, overwrite=True)
        write_checkpoint(self.run.last, weights, metadata, overwrite=True)
        write_tables(self.state.history, self.run.metrics, self.run.cases)
        draw_curves(self.state.history, self.run.curves)
        write_state(self.run.state, self.learner, self.state)
        self._events.add(epoch)

    def _save_state(self) -> None:
        self._note_losses()
        self._check_weights()
        if self._writes:
            write_state(self.run.state, self.learner, self.state)
        self._saved = time.perf_counter()

    def _note_losses(self) -> None:
        """Take losses and times of the running epoch into the state. Waits for the device."""
        state, now, waited_s = self.state, time.perf_counter(), self._feed.waited_s
        state.seconds += now - self._noted
        state.waited_s += waited_s - self._waited_s
        self._noted, self._waited_s = now, waited_s
        state.losses = self.team.mean(float(self._losses))
        if not math.isfinite(state.losses):
            self._raise_diverged("the loss")

    def _check_weights(self) -> None:
        if not self.learner.is_finite():
            self._raise_diverged("a weight")

    def _learning_rate(self) -> float:
        """Return the learning rate of the last step."""
        step = max(0, self.state.step - 1)
        return learning_rate(self.learner.recipe.optimiser, step=step, n_steps=self.length.n_steps)

    def _raise_diverged(self, what: str) -> NoReturn:
        epochs = self.state.history.epochs
        kept = (
            f"{self.run.last} holds the weights of epoch {epochs[-1].epoch}"
            if epochs
            else "no epoch was complete, none is kept"
        )
        remedy = f"try a --learning-rate below {self.learner.recipe.optimiser.learning_rate:g}"
        remedy += "" if self.precision is Precision.FLOAT32 else ", or --precision float32"
        where = f"at step {self.state.step} (learning rate {self._learning_rate():.3g})"
        raise DivergedError(f"{self.run.root}: {what} is no longer finite {where}; {kept}; {remedy}")

    def _weights(self) -> State:
        """Return the running average of the weights, the same in all processes."""
        averages = self.learner.averages
        self.team.follow_first([tensor for name, tensor in averages.items() if "running_" in name])
        return {name: tensor.cpu().contiguous().numpy() for name, tensor in averages.items()}

    def _validate(self, weights: State) -> tuple[CaseScore, ...] | None:
        """Score the held-out cases, of which each process takes its share; None when asked to stop."""
        checkpoint = Checkpoint(metadata=self.metadata, state=weights, sha256="")
        engine = TorchEngine(checkpoint, device=self.learner.device)
        window = WindowMode(self.learner.recipe.window)
        scores: list[CaseScore] = []
        is_stopped = False
        try:
            for case in self.validation[self.team.processes.rank :: self.team.processes.n]:
                tell = self._tell_validation_of(case.name)
                scores += [score_case(case, engine, window, on_progress=tell)]
        except _StopRequested:
            is_stopped = True
        if self.team.agree(int(is_stopped)):
            return None
        return tuple(sorted(self.team.gather(scores), key=lambda score: score.case))

    def _tell_validation_of(self, case: str) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            if self.should_stop():
                raise _StopRequested
            self.on_progress(TrainingProgress(stage=Stage.VALIDATING, done=done, total=total, case=case))

        return tell


class _StopRequested(Exception):  # noqa: N818  # not an error
    """Ends a validation."""


class _RecentLoss:
    """The loss of some steps ago. On a GPU the loss is fetched without waiting for what the GPU still computes."""

    def __init__(self, device: torch.device) -> None:
        self.value: float | None = None
        self._is_on_gpu = device.type == "cuda"
        if self._is_on_gpu:
            self._copy = torch.empty((), pin_memory=True)
            self._copied: torch.cuda.Event | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the loss was a number, as far as is known."""
        return self.value is None or math.isfinite(self.value)

    def look_at(self, loss: Tensor) -> None:
        """Fetch this loss; on a GPU the value is there at a later call."""
        if not self._is_on_gpu:
            self.value = float(loss)
            return
        if self._copied is not None:
            if not self._copied.query():  # type: ignore[no-untyped-call]
                return
            self.value = float(self._copy)
        self._copy.copy_(loss, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()


# Slices of the store are frames of the network already: in L, P, S, 1 mm, 240 x 240.
_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_WHOLE_AXIS: Final = AxisFit(size=FRAME, spacing_mm=1.0, start_mm=0.0, brain_mm=float(FRAME))


def score_case(
    case: StoredCase, engine: Engine, window: WindowMode, *, on_progress: Callable[[int, int], None] = lambda *_: None
) -> CaseScore:
    """Segment a held-out case as `segment` does, and score the result. on_progress: called with (slices done, all slices)."""
    slices, truth = case.slices(), np.moveaxis(case.classes(), 0, 2)
    geometry: Geometry = laid_out((FRAME, FRAME, len(slices)), _LPS, _WHOLE_AXIS, _WHOLE_AXIS)
    predicted = predict(slices, geometry, [engine], window=window, on_progress=on_progress).class_map
    return CaseScore(
        case.name, {region: dice(mask_of(predicted, classes), mask_of(truth, classes)) for region, classes in REGIONS.items()}
    )
