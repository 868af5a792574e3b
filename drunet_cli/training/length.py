"""How long a training is, in steps and epochs."""

from dataclasses import dataclass

from drunet_cli.errors import MisuseError
from drunet_cli.training.recipe import Recipe


@dataclass(frozen=True)
class Length:
    """steps_per_epoch: of all epochs but perhaps the last, which may be shorter."""

    steps_per_epoch: int
    n_steps: int

    @classmethod
    def of(cls, recipe: Recipe, *, n_slices: int) -> "Length":
        """n_slices: of all cases to learn from. Raises MisuseError when they do not make one batch."""
        steps_of_all_slices = n_slices // recipe.batches.size
        if steps_of_all_slices == 0:
            raise MisuseError(f"{n_slices} slices do not make one batch of {recipe.batches.size}; give a smaller --batch-size")
        steps_per_epoch = recipe.length.steps_per_epoch or steps_of_all_slices
        n_steps = recipe.length.steps or recipe.length.epochs * steps_per_epoch
        return cls(min(steps_per_epoch, n_steps), n_steps)

    @property
    def n_epochs(self) -> int:
        """The last one counted however short it is."""
        return -(-self.n_steps // self.steps_per_epoch)
