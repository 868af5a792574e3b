"""The application and its one boundary: whatever happens below ends here in an exit code."""

import errno
import io
import itertools
import os
import signal
import sys
import traceback
from typing import Annotated, Final

import typer

import drunet_cli
from drunet_cli.cli import segment, signals, weights
from drunet_cli.errors import DeviceError, DrunetError, MisuseError, OutputError, Terminated

EXIT_FAULT: Final = 70
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_TERMINATED: Final = 128 + signal.SIGTERM
# Of writing to a stream: files are written through io/atomic, which has an error of its own.
_STREAM_ERRORS: Final = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)

app = typer.Typer(
    name="drunet",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(segment.segment)
app.add_typer(weights.app, name="weights")


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
    """


def main(arguments: list[str]) -> int:
    """Run one command line; return its exit code, as the README documents them."""
    _open_closed_streams()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.forget()
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:  # as a shell leaves them for a command in the background, or nohup
            signal.signal(number, signals.on_signal)
    try:
        return _flushed(_run(arguments))
    finally:
        for number, earlier in before.items():  # from here on a signal ends the process, without a traceback
            signal.signal(number, earlier)


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError as error:
        return _report_lost_stdout(error) if code == 0 else code
    return code


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
    from drunet_cli.cli.console import give_up_stdout

    give_up_stdout()
    if isinstance(error, BrokenPipeError):
        return 0
    return _report(OutputError(f"stdout: cannot be written: {error.strerror}"))


def _report(error: DrunetError) -> int:
    from drunet_cli.cli.console import report

    report(error)
    return error.exit_code


def _report_misuse(error: typer.TyperException, arguments: list[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, printed already
        return error.exit_code
    context = getattr(error, "ctx", None)
    if context is not None:
        command = context.command_path
    else:  # an option that lacks its value
        command = " ".join(["drunet", *itertools.takewhile(str.isalpha, arguments)])
    message = error.format_message().replace("Value error, ", "")  # pydantic's words for it
    return _report(MisuseError(f"{message} Try: {command} --help"))
