"""`drunet weights`: trained weights, those that come with drunet and those in the cache; and how all commands open weights."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from drunet_cli.cli import options
from drunet_cli.cli.options import weights_names
from drunet_cli.errors import MisuseError, WeightsError
from drunet_cli.weights.registry import (
    BUNDLED,
    DEFAULT,
    ENTRIES,
    NO_CACHE,
    PUBLISHED_BN_EPSILON,
    Entry,
    cache_folder,
    cached_names,
    find_entry,
    has_cache,
    is_file,
    is_file_name,
    shown_source,
    source_url,
    weights_path,
)

if TYPE_CHECKING:
    from drunet_cli.cli.console import Screen
    from drunet_cli.weights.checkpoint import Checkpoint
    from drunet_cli.weights.download import ByteProgress

_HELP: Final = """Fetch, import and describe trained weights.

They lie in a cache folder (DRUNET_CACHE_DIR); --weights takes their names.

Fetch the published weights; or take in their file, fetched elsewhere:
drunet weights download
drunet weights import weights_brats_dr_unet_test_model_DO_05.h5
"""
_LONGEST_SUMMARY: Final = 60
PLACES: Final = {  # `where` of a set of weights, in words
    "bundled": "bundled with drunet",
    "cache": "in the cache",
    "not-downloaded": "not downloaded",
    "file": "a file of yours",
}
_WINDOWS: Final = {"auto": "auto: trained on windows of the frame", "full": "full: trained on whole frames"}
_LABELS: Final = {  # of the facts about weights, in the order in which a person wants to know them
    "name": "name",
    "description": "description",
    "where": "where",
    "path": "file",
    "get": "to get them",
    "megabytes": "download",
    "base_width": "base width",
    "bn_epsilon": "batch-norm epsilon",
    "dropout": "trained with dropout",
    "window": "window",
    "postprocessing": "recommended",
    "licence": "licence",
    "citation": "citation",
    "origin": "origin",
    "sha256": "SHA-256",
    "source_sha256": "SHA-256 of source",
}
app = typer.Typer(no_args_is_help=True, add_completion=False, help=_HELP)

_Name = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=weights_names, help="Name of the weights (drunet weights list).")
]


@app.command("list")
def list_weights(json: options.Json = False) -> None:
    """List the weights that drunet can download, brings along, or has in the cache.

    drunet weights list
    """
    from drunet_cli.cli.console import Screen, result_json, table_of

    screen = Screen()
    if not has_cache():
        screen.warning(NO_CACHE)
    cached = cached_names() if has_cache() else []
    rows = [_list_row(name) for name in dict.fromkeys([*ENTRIES, *BUNDLED, *cached])]
    if json:
        for row in rows:
            result_json(row)
    else:
        screen.table(table_of(("NAME", "WHERE", "DESCRIPTION"), map(_row_in_words, rows)))


@app.command()
def download(name: _Name = DEFAULT, quiet: options.Quiet = False) -> None:
    """Download weights into the cache, and print the path of their file.

    Nothing is downloaded if they are in the cache already, or come with drunet.

    drunet weights download
    """
    from drunet_cli.cli.console import Screen, result
    from drunet_cli.weights.cache import obtain

    screen = Screen(quiet=quiet)
    with _download_bar(screen, name) as on_progress:
        path = obtain(name, on_progress=on_progress, on_note=screen.note)
    result(str(path))


@app.command()
def path(name: _Name = DEFAULT) -> None:
    """Print the path of the file of weights; nothing is downloaded.

    It is an error (exit code 4) if they are neither in the cache nor part of
    drunet.

    drunet weights path compact
    """
    from drunet_cli.cli.console import result
    from drunet_cli.weights.cache import metadata_of

    result(str(metadata_of(name)[0]))


@app.command()
def info(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE", autocompletion=weights_names, help="Name of the weights (drunet weights list), or a file."
        ),
    ] = DEFAULT,
    json: options.Json = False,
) -> None:
    """Describe weights: where they are, base width, origin, check sums, licence.

    Also those that are not downloaded yet.

    drunet weights info compact
    """
    from drunet_cli.cli.console import Screen, fields_table, result_json

    document = _describe(weights)
    if json:
        result_json(document)
    else:
        Screen().table(fields_table(_description_in_words(document)))


@app.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            parser=options.path,
            metavar="FILE",
            help="Weights file: .h5 of Keras (save_weights), or .safetensors of drunet.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Name that --weights will take them by. The default is for the published file alone; give your own another.",
        ),
    ] = DEFAULT,
    epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="Batch-norm epsilon that a Keras file is to be run with, as it does not say.",
            show_default=f"{PUBLISHED_BN_EPSILON:g}",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace weights of that name.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Verify a weights file, put it into the cache, and print the path there.

    For machines without internet: fetch the authors' file elsewhere ("drunet
    weights info" has the link), copy it here, and import it.

    drunet weights import weights_brats_dr_unet_test_model_DO_05.h5
    drunet weights import mine.h5 --name mine
    """
    if epsilon is not None and not 0 < epsilon < 1:
        raise MisuseError(f"--epsilon {epsilon:g}: must lie between 0 and 1")
    from drunet_cli.cli.console import Screen, result
    from drunet_cli.weights.cache import import_weights
    from drunet_cli.weights.checkpoint import read_metadata

    cached = import_weights(file, name=name, bn_epsilon=epsilon, overwrite=overwrite)
    metadata = read_metadata(cached)
    Screen(quiet=quiet).note(f"Imported as {name}: base width {metadata.base_width}, epsilon {metadata.bn_epsilon:g}")
    result(str(cached))


def opener(screen: "Screen") -> "Callable[[str], Checkpoint]":
    """Make the function that opens weights by name or file and shows their download on the screen."""

    def open_shown(weights: str) -> "Checkpoint":
        from drunet_cli.weights.cache import open_weights

        with _download_bar(screen, weights) as on_progress:
            return open_weights(weights, on_progress=on_progress, on_note=screen.note)

    return open_shown


def would_download(entry: Entry) -> str:
    """The sentence of a dry run about weights that are not there."""
    from drunet_cli.weights.download import shown_url

    return (
        f"Weights {entry.name} are not in the cache: about {entry.megabytes} MB would be downloaded from "
        f"{shown_url(source_url(entry))} into {cache_folder()}"
    )


@contextmanager
def _download_bar(screen: "Screen", name: str) -> "Iterator[ByteProgress]":
    """Yield a callback that draws a bar, on a terminal only, from the first bytes on; take the bar away after the block."""
    from drunet_cli.cli.console import DownloadBar

    bars: list[DownloadBar] = []

    def move(n_bytes: int, n_total: int | None) -> None:
        if screen.draws:
            if not bars:
                megabytes = ENTRIES[name].megabytes if name in ENTRIES else 0
                bars.append(DownloadBar(screen, name, megabytes * 1e6))
            bars[0].move(n_bytes, n_total)

    try:
        yield move
    finally:
        for bar in bars:
            bar.stop()


def _list_row(name: str) -> dict[str, Any]:
    """A row of `weights list`. Damage to a file in the cache stands in the row's `error`."""
    from drunet_cli.weights.cache import metadata_of

    where, error = place_of(name), None
    known = ENTRIES.get(name) or BUNDLED.get(name)
    summary, description, licence = (known.summary, known.description, known.licence) if known else ("", "", None)
    if where == "cache":
        try:
            metadata = metadata_of(name)[1]
        except WeightsError as damage:
            error = str(damage)
        else:
            if known is None:
                description = f"base width {metadata.base_width}, from {metadata.origin}"
                summary = description if len(description) <= _LONGEST_SUMMARY else f"{description[: _LONGEST_SUMMARY - 1]}…"
                licence = metadata.licence or None
    return {
        "name": name,
        "default": name == DEFAULT,
        "where": where,
        "path": None if where == "not-downloaded" else str(weights_path(name)),
        "url": ENTRIES[name].url if name in ENTRIES else None,
        "page": ENTRIES[name].page if name in ENTRIES else None,
        "summary": summary,
        "description": description,
        "licence": licence,
        "error": error,
    }


def _row_in_words(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Name, place and summary, for a table."""
    name = f"{row['name']} (default)" if row["default"] else row["name"]
    return name, PLACES[row["where"]], row["error"] or row["summary"]


def _describe(weights: str) -> dict[str, Any]:
    """Collect all facts about weights by name or file, also about weights that are not downloaded yet.

    Raises WeightsError for unknown or damaged ones.
    """
    from drunet_cli.io.inputs import sha256_of
    from drunet_cli.weights.cache import metadata_of, open_weights

    where = place_of(weights)
    if where == "not-downloaded":
        return _describe_entry(weights)
    known = (ENTRIES.get(weights) or BUNDLED.get(weights)) if where != "file" else None
    file, metadata = metadata_of(weights)
    if where == "file":
        open_weights(weights)  # its tensors are checked
    description = {"description": known.description} if known is not None else {}
    return {
        "path": str(file),
        "where": where,
        "default": where != "file" and weights == DEFAULT,
        "sha256": sha256_of(file, error=WeightsError),
        **asdict(metadata),
        **description,
    }


def _describe_entry(name: str) -> dict[str, Any]:
    entry = find_entry(name)
    return {
        "path": None,
        "where": "not-downloaded",
        "default": name == DEFAULT,
        "sha256": None,
        "name": name,
        "description": entry.description,
        "base_width": entry.base_width,
        "bn_epsilon": entry.bn_epsilon,
        "dropout": entry.dropout,
        "origin": shown_source(entry),
        "source_sha256": entry.source_sha256,
        "megabytes": entry.megabytes,
        "licence": entry.licence,
        "citation": entry.citation,
    }


def _description_in_words(document: Mapping[str, Any]) -> dict[str, str]:
    """The object of _describe in words, by label."""
    words = {name: "" if document.get(name) is None else str(document[name]) for name in _LABELS}
    place = "not in the cache" if document["where"] == "not-downloaded" else PLACES[document["where"]]
    words["where"] = place + ("; used unless others are named" if document["default"] else "")
    if words["window"]:
        words["window"] = _WINDOWS[document["window"]]
    words["origin"] = _origin(document)
    if document.get("postprocessing"):
        words["postprocessing"] = _options_of(document["postprocessing"])
    if document["where"] == "not-downloaded":
        name = document["name"]
        words["get"] = f"drunet weights download {name}; without internet: drunet weights import FILE --name {name}"
        words["megabytes"] = f"about {document['megabytes']} MB"
    return {_LABELS[name]: text for name, text in words.items() if text}


def _options_of(postprocessing: Mapping[str, Any]) -> str:
    """The options that do as recommended, and the one that stands for them."""
    named = {"min_volume_ml": "--min-volume", "min_enhancing_ml": "--min-enhancing"}
    volumes = {step: value if isinstance(value, Sequence) else [value] for step, value in postprocessing.items()}
    options = " ".join(f"{named[step]} {','.join(f'{ml:g}' for ml in mls)}" for step, mls in volumes.items() if any(mls))
    return f"{options or 'no post-processing'} (--postprocess recommended)"


def _origin(document: Mapping[str, Any]) -> str:
    """The recorded origin; for bundled weights without the words of description and citation, and without the names of runs."""
    origin = str(document["origin"])
    if document["where"] != "bundled":
        return origin
    parts = origin.removeprefix(str(document["description"])).split(". ")
    citation = str(document["citation"])
    own = ". ".join(part for part in parts if part.strip() and part.strip() not in citation)
    own = re.sub(r", from [^,(]+ \(SHA-256 [0-9a-f]+\)", ", begun from other weights", own)
    return re.sub(r"cases learnt from: (\d+)", r"\1 cases", own)


def place_of(name: str) -> str:
    """The place of weights by name or file: file, bundled, cache or not-downloaded."""
    if is_file_name(name):
        return "file"
    if name in BUNDLED:
        return "bundled"
    return "cache" if has_cache() and is_file(weights_path(name)) else "not-downloaded"
