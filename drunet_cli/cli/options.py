"""Options that mean the same in every command. Typer reads these annotations when it runs."""

import re
from typing import Annotated, Final

import typer

_DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?")

IMAGES: Final = "Images"
OUTPUT: Final = "Output"
NETWORK: Final = "Network"


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:N, mps")
    return value


Weights = Annotated[
    str,
    typer.Option(
        metavar="NAME_OR_FILE",
        help="Weights by name (drunet weights list), or a .h5 or .safetensors file.",
        rich_help_panel=NETWORK,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N|mps",
        callback=_device,
        help="Where to compute; auto is the first CUDA GPU, else the CPU. A named device that is absent is an error.",
        rich_help_panel=NETWORK,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        metavar="N",
        help="CPU threads that compute.",
        show_default="what Slurm, cgroup and affinity grant",
        rich_help_panel=NETWORK,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        metavar="N",
        help="Slices computed at once; halved when memory runs out.",
        show_default="by device",
        rich_help_panel=NETWORK,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead, one object a line.", rich_help_panel=OUTPUT)]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", help="No bar, no notes, no warnings (the sidecar keeps them); errors stay.", rich_help_panel=OUTPUT
    ),
]


def modality(name: str) -> typer.models.OptionInfo:
    """An option that names the image of one modality."""
    option: typer.models.OptionInfo = typer.Option(
        metavar="FILE", help=f"{name} image, .nii or .nii.gz. Required.", show_default=False, rich_help_panel=IMAGES
    )
    return option
