"""The application, and its one boundary: whatever happens below ends here in an exit code."""

import errno
import io
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Final

import typer

import drunet_cli
from drunet_cli.cli import convert, demo, doctor, evaluate, export, guide, prepare, report, segment, train, weights
from drunet_cli.cli.console import Screen, give_up_stdout, reason_of_lost_stdout, telling
from drunet_cli.cli.options import Command, Group, telling_more
from drunet_cli.errors import DeviceError, DrunetError, ExitCode, MisuseError, OutputError, Terminated
from drunet_cli.processes import signals_raised

# Errors of writing to a stream; files are written through io/atomic, which has an error of its own.
_STREAM_ERRORS: Final = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
# A library of the system is missing or too old, or half a package is there. For an absent extra each command has its words.
_BROKEN_LIBRARY: Final = (
    "{name} cannot be imported ({error}); this is the installation's fault: install drunet and its extras again in a new "
    "environment, or look which other libraries LD_LIBRARY_PATH and PYTHONPATH bring"
)

app = typer.Typer(
    name="drunet",
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _add(group: typer.Typer, *commands: Callable[..., None]) -> None:
    for command in commands:
        group.command(cls=Command)(telling_more(command))


_add(convert.app, convert.nii2png, convert.png2nii)
for _command in weights.app.registered_commands:
    _command.cls = Command
_add(app, segment.segment, prepare.prepare, train.train, export.export, evaluate.evaluate, report.report)
app.add_typer(convert.app, name="convert", cls=Group)
app.add_typer(weights.app, name="weights", cls=Group)
_add(app, demo.demo, doctor.doctor, guide.guide)


def _print_version(context: typer.Context, wanted: bool) -> None:
    if not wanted:
        return
    typer.echo(f"drunet {drunet_cli.__version__}")
    if context.params.get("verbose"):
        for name, version in doctor.library_versions().items():
            typer.echo(f"{name} {version or 'not installed'}")
    raise typer.Exit


@app.callback()
def drunet(
    version: Annotated[  # noqa: ARG001  # its callback prints it
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="With --version: print those of what computes too.", is_eager=True)
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
    if verbose:
        raise MisuseError("-v of drunet itself is for --version; a command has its own: drunet segment -v ...")


def main(arguments: list[str]) -> int:
    """Run one command line; return its exit code, as the guide documents them."""
    _prepare_streams()
    telling.command_line = shlex.join(["drunet", *arguments])
    code: int = ExitCode.FAULT
    try:
        code = _run_until_signal(arguments)
        return code
    finally:
        telling.end(code)


def _run_until_signal(arguments: list[str]) -> int:
    try:
        with signals_raised():
            code = _run(arguments)
            lost = _stdout_error()
            return _report_lost_stdout(lost) if lost is not None and code == ExitCode.DONE else code
    except KeyboardInterrupt:  # after the command has ended
        return ExitCode.INTERRUPTED
    except Terminated:
        return ExitCode.TERMINATED


def _run(arguments: list[str]) -> int:
    try:
        return int(app(arguments, prog_name="drunet", standalone_mode=False) or ExitCode.DONE)
    except DrunetError as error:
        return _report(error)
    except typer.TyperException as error:
        return _report_misuse(error, arguments)
    except MemoryError:
        return _report(DeviceError("this machine's memory does not suffice"))
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except Terminated:
        return ExitCode.TERMINATED
    except SystemExit as error:  # Typer and rich make this of a closed pipe
        if isinstance(error.__context__, BrokenPipeError):
            return _report_lost_stdout(error.__context__)
        raise
    except Exception as error:  # noqa: BLE001  # a fault of drunet: shown whole, and told apart by its exit code
        if isinstance(error, OSError) and error.filename is None and error.errno in _STREAM_ERRORS:
            return _report_lost_stdout(error)
        telling.write(traceback.format_exc().rstrip())
        if isinstance(error, ImportError) and not (error.name or "").startswith(drunet_cli.__name__):
            return _report(MisuseError(_BROKEN_LIBRARY.format(name=error.name or "a library", error=error)))
        traceback.print_exc()
        sys.stderr.write("\nThis is a fault of drunet, not yours. Please report it with the lines above.\n")
        return ExitCode.FAULT


def _prepare_streams() -> None:
    """Let no stream fail for its encoding, nor for having been closed by the shell.

    A closed stream becomes the null device: else the next file that opens gets its descriptor. Where stdout is no terminal,
    a path is printed byte for byte as the system stores it; a terminal shows what is no text by backslashes.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  # stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper) and stdout is sys.__stdout__ and os.name == "posix" and not stdout.isatty():
        stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors())


def _stdout_error() -> OSError | None:
    """Why results could not be written, if they could not."""
    lost = reason_of_lost_stdout()
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return lost


def _report_lost_stdout(error: OSError) -> int:
    """A reader who has gone needs no report, and the files are written; any other reason loses a result."""
    give_up_stdout()
    if isinstance(error, BrokenPipeError):
        return ExitCode.DONE
    return _report(OutputError(f"stdout: cannot be written: {error.strerror}"))


def _report(error: DrunetError) -> int:
    Screen().error(str(error), error.details)
    return error.exit_code


def _report_misuse(error: typer.TyperException, arguments: list[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, printed already
        return error.exit_code
    context = getattr(error, "ctx", None)
    command = _command_of(arguments) if context is None else context.command_path  # none: an option that lacks its value
    message = error.format_message().replace("Value error, ", "")  # pydantic's words for it
    return _report(MisuseError(f"{message} Try: {command} --help"))


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
