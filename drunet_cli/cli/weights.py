"""`drunet weights`: trained weights, those that come with drunet and those in the cache."""

from pathlib import Path
from typing import Annotated, Final

import typer

from drunet_cli.cli import options
from drunet_cli.cli.options import weights_names
from drunet_cli.errors import MisuseError
from drunet_cli.weights.registry import DEFAULT, PUBLISHED_BN_EPSILON

_HELP: Final = """Fetch, import and describe trained weights.

They lie in a cache folder (DRUNET_CACHE_DIR); --weights takes their names.

Fetch the published weights; or take in their file, fetched elsewhere:
drunet weights download
drunet weights import weights_brats_dr_unet_test_model_DO_05.h5
"""
app = typer.Typer(no_args_is_help=True, help=_HELP)

_Name = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=weights_names, help="Name of the weights (drunet weights list).")
]


@app.command("list")
def list_weights(json: options.Json = False) -> None:
    """List the weights that drunet can download, brings along, or has in the cache.

    drunet weights list
    """
    from drunet_cli.cli.console import Screen, result_json, weights_table
    from drunet_cli.cli.weights_facts import listed_weights, words_of

    rows = listed_weights()
    if json:
        for row in rows:
            result_json(row)
    else:
        Screen().table(weights_table([words_of(row) for row in rows]))


@app.command()
def download(name: _Name = DEFAULT, quiet: options.Quiet = False) -> None:
    """Download weights into the cache, and print the path of their file.

    Nothing is downloaded if they are in the cache already, or come with drunet.

    drunet weights download
    """
    from drunet_cli.cli.console import Screen, result
    from drunet_cli.cli.downloads import DownloadWatcher
    from drunet_cli.weights.cache import obtain

    with DownloadWatcher(Screen(quiet=quiet)).shown() as watcher:
        path = obtain(name, watcher=watcher)
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
    from drunet_cli.cli.weights_facts import described_weights, words_for

    document = described_weights(weights)
    if json:
        result_json(document)
    else:
        Screen().table(fields_table(words_for(document)))


@app.command("import")
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Weights file: .h5 of Keras (save_weights), or .safetensors of drunet.", show_default=False
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
    quiet: Annotated[bool, typer.Option("--quiet", help="No notes; errors stay.")] = False,
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
