"""Whoever follows a training from outside."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drunet_cli.training.history import Epoch
    from drunet_cli.training.store import PreparedCase


class Watcher:
    """Told how a training goes; does nothing with it. The command line draws it in a class of its own."""

    def found(self, n_cases: int) -> None:
        """So many cases will be read into the store."""

    def prepared(self, case: "PreparedCase") -> None:
        """One of them is there."""

    def stepped(self, done: int, n_steps: int, *, loss: float | None, slices_per_s: float) -> None:
        """A step is done. loss: the last that is known."""

    def validating(self, case: str, done: int, n_slices: int) -> None:
        """So many slices of a held-out case are segmented."""

    def finished(self, epoch: "Epoch", n_epochs: int, *, left_s: float) -> None:
        """An epoch is done and recorded; the others will take so long."""
