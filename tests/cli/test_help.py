"""What `--help` shows of every command, on a terminal of 80 columns and through a pipe."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from typer.core import TyperArgument
from typer.main import get_command

from drunet_cli.cli.app import app, main

WIDTH: Final = 80
_MARGINS: Final = 2  # that the help leaves blank beside its text
_IS_PATH: Final = re.compile(r"FILE(\.\w+)?|DIR|OUT|RUN|REF")  # the words for paths in the help


def _below(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _below(inner, (*words, name))


COMMANDS: Final = dict(_below(get_command(app)))
every_command = pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "drunet")


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.chdir(tmp_path)


def help_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], option: str = "--help") -> str:
    assert main([*words, option]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@every_command
def test_help_fits_the_terminal_breaks_no_word_and_shows_no_python_type(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(words, capsys)
    assert help_of(words, capsys, "-h") == shown
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "\x1b" not in shown
    described = {word for parameter in COMMANDS[words].params for word in (parameter.help or "").split()}
    assert not described - set(shown.replace("│", " ").split())
    if hasattr(TyperArgument, "display_type_rich"):  # Typer before 0.29 shows types in another way
        assert not [name for name in ("<bool>", "<str>", "<path>", "list[") if name in shown]
    panels = [line.split()[1] for line in shown.splitlines() if line.startswith("╭─")]
    assert panels[-1] == ("Commands" if hasattr(COMMANDS[words], "commands") else "Help")


@every_command
def test_a_command_is_described_in_short_lines_with_an_example_and_names_its_options_alike(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    lines = command.help.splitlines()
    assert [line for line in lines if len(line) > WIDTH - _MARGINS] == []  # else they would be wrapped again
    # In one line: in two, the blanks that fill up a line of the terminal would follow the backslash.
    assert [line for line in lines if line.startswith(" ".join(["drunet", *words]))]
    assert not [line for line in lines if line.endswith("\\")]
    # Some versions of Typer name an option after its metavar.
    assert [name for each in command.params for name in each.opts if name.startswith("--") and name != name.lower()] == []
    assert [each.opts for each in command.params if "-o" in each.opts] in ([], [["--output", "-o"]])


@every_command
def test_no_path_may_be_empty(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """An unset variable of a shell script would else name the current folder."""
    for parameter in COMMANDS[words].params:
        if _IS_PATH.fullmatch(parameter.metavar or ""):
            option = [name for name in parameter.opts if name.startswith("--")]
            assert main([*words, *option, ""]) == 2
            assert "an empty path; an unset variable?" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("small_phantoms")
@pytest.mark.parametrize("option", [["--output", "made"], ["-omade"]], ids=" ".join)
def test_an_output_may_be_named_by_its_long_option_or_in_the_word_of_the_short_one(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--write-cases", "1", *option, "--quiet"]) == 0
    assert capsys.readouterr().out == "made/phantom_0\n"


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("segment cases -output results", "-output"),
        ("segment cases -o results -overwrite", "-overwrite"),
        ("segment -t1 t1.nii.gz", "-t1"),
        ("demo -output=made", "-output=made"),
        ("weights list -json", "-json"),
        ("-version", "-version"),
    ],
)
def test_a_long_option_with_one_dash_is_misuse(line: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """-output x was read as -o utput."""
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"Error: {option}: a long option takes two dashes; write -{option}\n")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (words, option)
        for words, command in COMMANDS.items()
        for option in command.params
        if not (isinstance(option, TyperArgument) or option.is_flag or option.multiple)
    ],
    ids=lambda each: each.opts[0] if hasattr(each, "opts") else " ".join(each),
)
def test_an_option_that_takes_one_value_refuses_a_second(
    words: tuple[str, ...], option: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last one counted in silence."""
    first, last = option.opts[0], option.opts[-1]
    assert main([*words, first, "x", last, "x"]) == 2
    out, err = capsys.readouterr()
    told = f"Error: {'/'.join(option.opts)}: given 2 times, and takes one value; give it once\n"
    assert (out, err) == ("", told)


def test_who_asks_for_help_gets_it_whatever_else_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "--window", "x", "--window=x", "--help"]) == 0


@pytest.mark.usefixtures("small_phantoms")
def test_a_flag_or_a_repeatable_option_may_be_given_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--write-cases", "1", "--quiet", "-o", "out", "--quiet"]) == 0
    assert main(["segment", "absent", "-o", "a", "--dry-run", "--pattern", "t1=a", "--pattern=t2=b", "--dry-run"]) == 3
    assert main(["segment", "absent", "-oa", "-ob"]) == 2
    assert capsys.readouterr().err.count("given 2 times") == 1


@pytest.mark.parametrize("words", [(), ("weights",), ("convert",)], ids=lambda words: " ".join(words) or "drunet")
def test_a_command_that_lacks_its_command_shows_its_help_on_stderr(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(words, capsys)
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", shown.strip())
