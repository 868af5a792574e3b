"""The application and its one boundary: whatever happens below ends here in an exit code."""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from itertools import takewhile
from typing import Annotated, Any, Final

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

import drunet_cli
from drunet_cli.cli import demo, evaluate, export, guide, nii2png, png2nii, segment, train, weights
from drunet_cli.cli import report as report_command
from drunet_cli.cli.console import give_up_stdout, report, why_stdout_was_lost
from drunet_cli.errors import DeviceError, DrunetError, MisuseError, OutputError, Terminated
from drunet_cli.signals import signals_raised

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


EXIT_FAULT: Final = 70
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_TERMINATED: Final = 128 + signal.SIGTERM
# Of writing to a stream: files are written through io/atomic, which has an error of its own.
_STREAM_ERRORS: Final = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)

app = typer.Typer(
    name="drunet",
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": list(HELP_OPTIONS)},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_CONVERT: Final = """Convert cases to PNG slices, and label slices to label maps.

drunet convert nii2png BraTS2021_TrainingData -o slices

drunet convert png2nii slices --like BraTS2021_TrainingData -o label_maps
"""
convert = typer.Typer(no_args_is_help=True, help=_CONVERT)
add_to(app, segment.segment, train.train, export.export, evaluate.evaluate, report_command.report)
add_to(convert, nii2png.nii2png, png2nii.png2nii)
app.add_typer(convert, name="convert", cls=Group)
app.add_typer(adopt(weights.app), name="weights", cls=Group)
add_to(app, demo.demo, guide.guide)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"drunet {drunet_cli.__version__}")
        raise typer.Exit


@app.callback()
def drunet(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Brain tumour segmentation in MRI with DR-Unet104 (Colman et al. 2020).

    Research software for pre-operative glioma. Not a medical device.

    Try it on a synthetic case, without images of your own and without a download:
    drunet demo

    Segment all cases in a folder, then put the results on one page:
    drunet segment BraTS2021_ValidationData -o results --preview
    drunet report results -o report.html

    Read the manual, here in the terminal:
    drunet guide
    """


def main(arguments: list[str]) -> int:
    """Run one command line; return its exit code, as the guide documents them."""
    _open_closed_streams()
    try:
        with signals_raised():
            return _flushed(_run(arguments))
    except KeyboardInterrupt:  # between the last line of a command and here
        return EXIT_INTERRUPTED
    except Terminated:
        return EXIT_TERMINATED


def _flushed(code: int) -> int:
    lost = why_stdout_was_lost()
    try:
        sys.stdout.flush()
    except OSError as error:
        lost = error
    return _report_lost_stdout(lost) if lost is not None and code == 0 else code


def _open_closed_streams() -> None:
    """Give a stream that the shell has closed to the null device: else the next file that opens gets its descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  # stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold what the terminal's encoding does not
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    try:
        return int(app(arguments, prog_name="drunet", standalone_mode=False) or 0)
    except DrunetError as error:
        return _report(error)
    except typer.TyperException as error:
        return _report_misuse(error, arguments)
    except MemoryError:
        return _report(DeviceError("this machine's memory does not suffice"))
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Terminated:
        return EXIT_TERMINATED
    except SystemExit as error:  # Typer and rich make this of a closed pipe
        if isinstance(error.__context__, BrokenPipeError):
            return _report_lost_stdout(error.__context__)
        raise
    except Exception as error:  # noqa: BLE001  # a fault of drunet: shown whole, and told apart by its exit code
        if isinstance(error, OSError) and error.filename is None and error.errno in _STREAM_ERRORS:
            return _report_lost_stdout(error)
        traceback.print_exc()
        sys.stderr.write("\nThis is a fault of drunet, not yours. Please report it with the lines above.\n")
        return EXIT_FAULT


def _report_lost_stdout(error: OSError) -> int:
    """A reader who has gone needs no report, and the files are written; any other reason loses a result."""
    give_up_stdout()
    if isinstance(error, BrokenPipeError):
        return 0
    return _report(OutputError(f"stdout: cannot be written: {error.strerror}"))


def _report(error: DrunetError) -> int:
    report(error)
    return error.exit_code


def _command_of(arguments: list[str]) -> str:
    """The command that a command line calls, as far as there is one of that name."""
    words, group = ["drunet"], app
    for word in arguments:
        if inner := next((info.typer_instance for info in group.registered_groups if info.name == word), None):
            group = inner
        elif word not in [info.name or getattr(info.callback, "__name__", "") for info in group.registered_commands]:
            break
        words.append(word)
    return " ".join(words)


def _report_misuse(error: typer.TyperException, arguments: list[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, printed already
        return error.exit_code
    context = getattr(error, "ctx", None)
    command = _command_of(arguments) if context is None else context.command_path  # none: an option that lacks its value
    message = error.format_message().replace("Value error, ", "")  # pydantic's words for it
    return _report(MisuseError(f"{message} Try: {command} --help"))
