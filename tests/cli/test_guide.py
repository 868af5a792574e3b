"""`drunet guide`: the list of topics, the pages through a pipe and in a terminal's pager, and what it refuses."""

import os
import subprocess
import sys

import pytest

from drunet_cli.cli.app import main
from drunet_cli.cli.guide import PAGES, TOPICS, summary_of


def test_every_page_of_the_guide_is_a_topic() -> None:
    assert sorted(TOPICS) == sorted(path.stem for path in PAGES.iterdir())


def test_without_a_topic_all_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide"]) == 0
    out, err = capsys.readouterr()
    _, *rows = out.splitlines()
    assert [row.split(maxsplit=1) for row in rows] == [[topic, summary_of(topic)] for topic in TOPICS]
    assert err == ""


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_begins_with_a_heading_and_a_sentence(topic: str) -> None:
    heading, blank, summary, second_blank, *_ = (PAGES / f"{topic}.md").read_text().splitlines()
    assert heading.startswith("# ")
    assert (blank, second_blank) == ("", "")
    assert summary.endswith(".")


def test_a_pipe_gets_the_markdown_of_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide", "first-case"]) == 0
    assert capsys.readouterr() == ((PAGES / "first-case.md").read_text(), "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locales")
def test_a_locale_without_a_letter_of_a_page_gets_its_number() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "drunet_cli", "guide", "evaluate"]
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment, check=True)
    assert done.stdout == (PAGES / "evaluate.md").read_text(encoding="utf-8").encode("ascii", "backslashreplace")


def test_names_and_colours_of_labels_are_printed_as_other_viewers_read_them(capsys: pytest.CaptureFixture[str]) -> None:
    colours = {1: (0xD5, 0x5E, 0x00), 2: (0x56, 0xB4, 0xE9), 3: (0xF0, 0xE4, 0x42), 4: (0xF0, 0xE4, 0x42)}  # as in previews
    assert main(["guide", "labels_itksnap.txt"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert [line.split('"')[1] for line in rows] == [
        "Clear Label",
        "NCR necrotic core",
        "ED oedema",
        *["ET enhancing tumour"] * 2,
    ]
    assert [tuple(map(int, line.split()[:7])) for line in rows[1:]] == [
        (value, *rgb, 1, 1, 1) for value, rgb in colours.items()
    ]
    assert main(["guide", "labels_slicer.ctbl"]) == 0
    header, _, background, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("# Color table file ")
    assert background == "0 Background 0 0 0 0"
    assert [line.split()[1] for line in lines] == ["NCR_necrotic_core", "ED_oedema", *["ET_enhancing_tumour"] * 2]
    assert [tuple(map(int, (line.split()[0], *line.split()[2:]))) for line in lines] == [
        (value, *rgb, 255) for value, rgb in colours.items()
    ]


@pytest.mark.parametrize(
    ("topic", "offer"),
    [
        ("wieghts", "near it: weights"),
        ("Cluster", "near it: clusters"),
        ("segment", "near it: first-case"),
        ("raw-scans", "near it: prepare"),
        ("?", f"the topics: {', '.join(TOPICS)}"),
    ],
)
def test_a_wrong_topic_is_misuse_and_names_those_like_it(topic: str, offer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide", topic]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"Error: {topic!r} is not a topic of the guide; {offer}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminal")
def test_a_terminal_gets_a_drawn_page_through_the_pager() -> None:
    """Links to files are the commands that show them; addresses stay to be read."""
    program = f"import pty; pty.spawn([{sys.executable!r}, '-m', 'drunet_cli', 'guide', 'accuracy'])"
    environment = {"PAGER": "sed s/^/paged:/", "TERM": "dumb", "COLUMNS": "80", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment
    )
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["paged:", "Accuracy", "and", "limits"]
    assert all(line.startswith("paged:") for line in lines)
    shown = " ".join(line.removeprefix("paged:").strip() for line in lines)
    assert "https://arxiv.org/abs/2011.02840" in shown
    assert "drunet guide weights" in shown
    assert ".md" not in shown
