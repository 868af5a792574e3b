"""What Tab offers in a shell, beside the commands, options and enumerations that Typer knows by itself. Nothing heavy.

Where nothing is offered, the shell offers files.
"""

from collections.abc import Callable, Iterable

from drunet_cli.errors import WeightsError
from drunet_cli.weights.registry import BUNDLED, ENTRIES, cached_names


def one_of(words: Iterable[str]) -> Callable[[str], list[str]]:
    """The completion of an option that takes one of these words."""
    offered = list(words)

    def beginning_with(incomplete: str) -> list[str]:
        return [word for word in offered if word.startswith(incomplete)]

    return beginning_with


def weights_names(incomplete: str) -> list[str]:
    """The weights that `drunet weights list` lists."""
    try:
        cached = cached_names()
    except (OSError, WeightsError):  # the command that is being typed will say so
        cached = []
    return one_of(dict.fromkeys([*ENTRIES, *BUNDLED, *cached]))(incomplete)
