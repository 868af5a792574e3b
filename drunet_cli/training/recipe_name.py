"""The recipes by name: all that the command line must know of them to show its help."""

from enum import StrEnum


class RecipeName(StrEnum):
    """Where the numbers come from."""

    MODERN = "modern"
    PAPER = "paper"
