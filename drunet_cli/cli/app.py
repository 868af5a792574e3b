"""The application: its commands, how they read a command line, and the one boundary, where all ends in an exit code."""

import codecs
import errno
import functools
import importlib
import inspect
import io
import os
import shlex
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

import drunet_cli
from drunet_cli.cli import options
from drunet_cli.cli.console import Screen, give_up_stdout, reason_of_lost_stdout, run_log
from drunet_cli.errors import DeviceError, DrunetError, ExitCode, MisuseError, OutputError, Terminated
from drunet_cli.processes import raise_signals

# In the order of --help. The file cli/NAME.py is imported when somebody calls the command NAME, and has a function NAME or a
# Typer app of commands.
COMMANDS: Final = (
    *("segment", "prepare", "train", "export", "evaluate", "report"),
    *("demo", "doctor", "guide", "convert", "weights"),
)
# Errors of writing to a stream; files are written through io/atomic, which has an error of its own.
_STREAM_ERRORS: Final = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
# A system library is missing or too old, or a package is installed in part. Commands have messages for absent extras.
_BROKEN_LIBRARY: Final = (
    "{name} cannot be imported ({error}); this is the installation's fault: install drunet and its extras again in a new "
    "environment, or look which other libraries LD_LIBRARY_PATH and PYTHONPATH bring; drunet doctor names versions, and {trace}"
)


class Command(TyperCommand):
    """A command; --help comes last, after the panels of its own options."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options and arguments, and --help."""
        return _without_python_types(super().get_params(ctx))

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        """--help, in a panel of its own."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = "Help"
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise MisuseError where a long option has one dash, or an option that takes one value is given twice."""
        if not ctx.resilient_parsing:  # as when Tab is pressed
            _check_dashes(args, self.get_params(ctx))
            _check_given_once(self.make_parser(ctx).parse_args(list(args))[2])
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


class _Drunet(Group):
    """All commands; one that is not called is not imported."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Their names; Typer would import them all."""
        return list(COMMANDS)


class _Commands(Mapping[str, Any]):
    """Commands by name, each made when somebody asks for it."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _NamedArgument(TyperArgument):
    """An argument that its metavar describes; Typer would show the Python type beside the metavar."""

    def display_type_rich(self, ctx: Any) -> None:
        """Show no type."""


def _without_python_types(parameters: Iterable[Any]) -> list[Any]:
    """Show no <bool> for a flag, and no <list[str]> for an argument."""
    shown = list(parameters)
    for parameter in shown:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
        elif isinstance(parameter, TyperArgument) and parameter.metavar is not None:
            parameter.__class__ = _NamedArgument  # Typer makes its arguments itself
    return shown


def _check_given_once(parameters: Iterable[Any]) -> None:
    """Raise MisuseError for an option that takes one value and was given twice: Typer would take the last in silence.

    parameters: of a command line, each as often as it stands there. A flag may be repeated, and --help comes first.
    """
    counts = Counter(parameters)
    if not any(parameter.is_eager for parameter in counts):
        for parameter, n in counts.items():
            if n > 1 and isinstance(parameter, TyperOption) and not (parameter.multiple or parameter.is_flag):
                raise MisuseError(f"{'/'.join(parameter.opts)}: given {n} times, and takes one value; give it once")


def _check_dashes(words: Iterable[str], parameters: Sequence[Any]) -> None:
    """Raise MisuseError for a long option with one dash: Typer would read -output as -o utput."""
    long_options = {name for parameter in parameters for name in parameter.opts if name.startswith("--")}
    for word in takewhile(lambda word: word != "--", words):
        if f"-{word.partition('=')[0]}" in long_options and not word.startswith("--"):
            raise MisuseError(f"{word}: a long option takes two dashes; write -{word}")


@functools.cache
def _command(name: str) -> Any:
    """Import a command's file and make its command, or its group of commands."""
    module = importlib.import_module(f"drunet_cli.cli.{name}")
    group = getattr(module, "app", None)
    if group is None:
        group = typer.Typer(add_completion=False)
        group.command()(getattr(module, name))
    else:
        group.info.name, group.info.cls = name, Group
    for info in group.registered_commands:
        info.cls, info.callback = Command, _with_verbose_and_log(info.callback)
    return typer.main.get_command(group)


def _with_verbose_and_log(command: Any) -> Any:
    """Give a command that has --quiet also --verbose and --log, which its screens heed by themselves."""
    signature = inspect.signature(command)
    if "quiet" not in signature.parameters:
        return command

    @functools.wraps(command)
    def run(*, verbose: bool, log: Path | None, **given: Any) -> None:
        if verbose and given["quiet"]:
            raise MisuseError("--verbose and --quiet exclude one another")
        run_log.verbose = verbose
        if log is not None:
            run_log.open(log)
        command(**given)

    more = {"verbose": (options.Verbose, False), "log": (options.Log, None)}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in more.items()
    ]
    before = list(signature.parameters.values())
    at = list(signature.parameters).index("quiet") + 1
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*before[:at], *added, *before[at:]]
    )
    run.__annotations__ = {**command.__annotations__, "verbose": options.Verbose, "log": options.Log}
    return run


app = typer.Typer(
    name="drunet",
    cls=_Drunet,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(context: typer.Context, wanted: bool) -> None:
    if not wanted:
        return
    typer.echo(f"drunet {drunet_cli.__version__}")
    if context.params.get("verbose"):
        from drunet_cli.cli import doctor

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
    run_log.command_line = shlex.join(["drunet", *arguments])
    code: int = ExitCode.FAULT
    try:
        code = _run_until_signal(arguments)
        return code
    finally:
        run_log.end(code)


def _run_until_signal(arguments: list[str]) -> int:
    try:
        with raise_signals():
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
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except typer.Abort as error:  # Typer makes this of Ctrl-C, and of the end of a file that was met where none is expected
        return _report_fault(error.__cause__) if isinstance(error.__cause__, EOFError) else ExitCode.INTERRUPTED
    except Terminated:
        return ExitCode.TERMINATED
    except SystemExit as error:  # Typer and rich make this of a closed pipe
        if isinstance(error.__context__, BrokenPipeError):
            return _report_lost_stdout(error.__context__)
        raise
    except Exception as error:  # noqa: BLE001  # a fault of drunet: shown whole, and told apart by its exit code
        if isinstance(error, OSError) and error.filename is None and error.errno in _STREAM_ERRORS:
            return _report_lost_stdout(error)
        return _report_fault(error)


def _report_fault(error: Exception) -> int:
    """Print the traceback, but for a library that cannot be imported: that is a fault of the installation."""
    run_log.write("".join(traceback.format_exception(error)).rstrip())
    name = error.name or "a library" if isinstance(error, ImportError) else ""
    if isinstance(error, EOFError) and str(error).startswith("marshal"):  # a full disk had cut its compiled file short
        name = "a module"
    if name and not name.startswith(drunet_cli.__name__):
        if run_log.verbose:
            traceback.print_exception(error)
            trace = "the lines above tell where the import failed"
        else:
            trace = "the log has the traceback" if run_log.file else "-v or --log FILE tells where the import failed"
        return _report(MisuseError(_BROKEN_LIBRARY.format(name=name, error=error, trace=trace)))
    traceback.print_exception(error)
    sys.stderr.write("\nThis is a fault of drunet, not yours. Please report it with the lines above.\n")
    return ExitCode.FAULT


def _prepare_streams() -> None:
    """Let no stream fail for its encoding, nor for having been closed by the shell.

    A closed stream becomes the null device: else the next file that opens gets its descriptor. Where stdout is no terminal,
    a path is printed byte for byte as the system stores it; a terminal shows bytes that are no text by backslashes, and so
    does every stream letters that its encoding lacks.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  # stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper) and stdout is sys.__stdout__ and os.name == "posix" and not stdout.isatty():
        codecs.register_error(_AS_STORED, _as_stored)
        stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors=_AS_STORED)


_AS_STORED: Final = "drunet-as-stored"


def _as_stored(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode one character: a byte of a file's name that is no text as that byte, a letter by a backslash."""
    assert isinstance(error, UnicodeEncodeError), "stdout is written and not read"
    error.end = error.start + 1
    try:
        return codecs.lookup_error(sys.getfilesystemencodeerrors())(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


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
    command = _command_of(arguments) if context is None else context.command_path  # no context: an option lacks its value
    message = error.format_message().replace("Value error, ", "")  # pydantic's words for it
    return _report(MisuseError(f"{message} Try: {command} --help"))


def _command_of(arguments: list[str]) -> str:
    """The command that a command line calls, as far as there is one of that name."""
    words = ["drunet"]
    commands: Mapping[str, Any] = _Commands()
    for word in arguments:
        if word not in commands:
            break
        words.append(word)
        commands = getattr(commands[word], "commands", {})
    return " ".join(words)
