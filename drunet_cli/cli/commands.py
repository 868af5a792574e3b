"""How every command reads its options and shows its help, where Typer's own way would puzzle a user."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from itertools import takewhile
from typing import Any, Final

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from drunet_cli.errors import MisuseError

HELP_OPTIONS: Final = ("--help", "-h")
_HELP: Final = "Help"


class _Named(TyperArgument):
    """An argument whose metavar says what it is; Typer would show its Python type beside it, of an option it does not."""

    def display_type_rich(self, ctx: Any) -> None:
        """Nothing."""


def _without_python_types(parameters: Iterable[Any]) -> list[Any]:
    """Show no <bool> for a flag, and no <list[str]> for an argument."""
    shown = list(parameters)
    for parameter in shown:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
        elif isinstance(parameter, TyperArgument) and parameter.metavar is not None:
            parameter.__class__ = _Named  # Typer makes its arguments itself
    return shown


def _check_dashes(words: Iterable[str], parameters: Sequence[Any]) -> None:
    """Raise MisuseError for a long option with one dash: Typer would read -output as -o utput."""
    long_options = {name for parameter in parameters for name in parameter.opts if name.startswith("--")}
    for word in takewhile(lambda word: word != "--", words):
        if f"-{word.partition('=')[0]}" in long_options and not word.startswith("--"):
            raise MisuseError(f"{word}: a long option takes two dashes; write -{word}")


class Command(TyperCommand):
    """A command; --help comes last, after the panels of its own options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options and arguments, and --help."""
        return _without_python_types(super().get_params(ctx))

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        """--help, in a panel of its own."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = _HELP
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise MisuseError where a long option has one dash."""
        if not ctx.resilient_parsing:  # as when Tab is pressed
            _check_dashes(args, self.get_params(ctx))
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A command of commands; alone it is misuse, so that its help goes to stderr."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, and --help."""
        return _without_python_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise MisuseError where a long option before the command has one dash."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        _check_dashes(takewhile(lambda word: word.startswith("-"), args), self.get_params(ctx))
        if args:
            return super().parse_args(ctx, args)
        with redirect_stdout(sys.stderr):
            return super().parse_args(ctx, args)


def add_to(app: typer.Typer, *commands: Any) -> None:
    """Make functions commands of an application, by their names."""
    for command in commands:
        app.command(cls=Command)(command)


def adopt(app: typer.Typer) -> typer.Typer:
    """Let the commands that an application has already behave as all others."""
    for command in app.registered_commands:
        command.cls = Command
    return app
