"""What a training leaves in its run folder, epoch by epoch."""

from dataclasses import dataclass, replace

from drunet_cli.training.history import Epoch, EventWriter, History, draw_curves, write_tables
from drunet_cli.training.learner import Learner
from drunet_cli.training.run_folder import RunFolder
from drunet_cli.training.state import Progress, write_state
from drunet_cli.weights.checkpoint import Metadata, State, write_checkpoint


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
