"""`drunet guide`: the manual, a Markdown page for each topic, where there is no browser."""

import difflib
from pathlib import Path
from typing import Annotated, Final

import typer

import drunet_cli
from drunet_cli.cli.options import one_of
from drunet_cli.errors import MisuseError

PAGES: Final = Path(drunet_cli.__file__).parent / "guide"
# In the order in which people need them. A tuple, so that Tab opens no file.
TOPICS: Final = (
    *("install", "first-case", "images", "prepare", "many-cases", "check", "viewer", "outputs", "bids", "weights", "averaging"),
    *("evaluate", "clusters", "containers", "speed", "exit-codes", "troubleshooting"),
    *("python", "slices", "train", "export", "accuracy", "fidelity", "network"),
)
# Names of commands, and other words for the subject of a page.
_OTHER_WORDS: Final = {
    "segment": "first-case",
    "report": "check",
    "convert": "slices",
    "demo": "install",
    "browser": "viewer",
    "itk-snap": "viewer",
    "slicer": "viewer",
    "raw-scans": "prepare",
    "dicom": "prepare",
    "registration": "prepare",
    "skull-stripping": "prepare",
    "cohort": "many-cases",
    "slurm": "clusters",
    "docker": "containers",
    "sidecar": "outputs",
    "derivatives": "bids",
    "offline": "weights",
    "uncertainty": "averaging",
    "doctor": "troubleshooting",
    "errors": "troubleshooting",
}


def guide(
    topic: Annotated[
        str | None,
        typer.Argument(metavar="TOPIC", autocompletion=one_of(TOPICS), help="Page to show.", show_default="list the topics"),
    ] = None,
) -> None:
    """Show the manual, page by page; without TOPIC, list the topics.

    A terminal shows a page in the pager of the variable PAGER, which is less in
    most places: type q to leave it. A pipe or a file gets plain Markdown.

    labels_itksnap.txt and labels_slicer.ctbl are no topics, but files that give
    other viewers the names and colours of the labels.

    drunet guide
    drunet guide first-case
    drunet guide labels_itksnap.txt > labels_itksnap.txt
    """
    from drunet_cli.cli.console import Screen, result, show_markdown, table_of
    from drunet_cli.segmentation.derivatives import ITKSNAP, SLICER, colour_table

    if topic is None:
        Screen().table(table_of(("TOPIC", "WHAT IT IS FOR"), [(name, summary_of(name)) for name in TOPICS]))
    elif topic in (ITKSNAP, SLICER):
        result(colour_table(topic).removesuffix("\n"))
    else:
        show_markdown(page_of(topic))


def page_of(topic: str) -> str:
    """The Markdown of a topic. Raises MisuseError that names the topics like it, or all where none is."""
    if topic not in TOPICS:
        words = {name: name for name in TOPICS} | _OTHER_WORDS
        near = {words[word]: None for word in difflib.get_close_matches(topic.lower(), words)}
        offer = f"near it: {', '.join(near)}" if near else f"the topics: {', '.join(TOPICS)}"
        raise MisuseError(f"{topic!r} is not a topic of the guide; {offer}")
    return (PAGES / f"{topic}.md").read_text(encoding="utf-8")


def summary_of(topic: str) -> str:
    """The line below the heading of a page, which says what the page is for."""
    _, _, summary, *_ = page_of(topic).splitlines()
    return summary
