"""Options that mean the same in every command. Typer reads these annotations when it runs."""

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from drunet_cli.cli.completion import one_of, weights_names
from drunet_cli.errors import MisuseError
from drunet_cli.host import devices_named
from drunet_cli.network.registry import DEFAULT

_DEVICE_NAMES: Final = one_of(("auto", "cpu", "cuda", "mps"))  # which of them are there would take PyTorch to say
_SHARD: Final = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)
_DEVICES: Final = "auto|cpu|cuda|cuda:N|mps"
_WHERE: Final = "Where to compute; auto is the first CUDA GPU, else the CPU. A named device that is absent is an error."
_WEIGHTS: Final = "Weights by name (drunet weights list), or a .h5 or .safetensors file."

IMAGES: Final = "Images"
OUTPUT: Final = "Output"
NETWORK: Final = "Network"


def _device(value: str) -> str:
    if "," in value:
        raise typer.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:N, mps")
    return _devices(value)


def _devices(value: str) -> str:
    try:
        devices_named(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return value


def _shard(value: str | None) -> str | None:
    if value is not None:
        found = _SHARD.fullmatch(value)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise typer.BadParameter(f"{value!r} is not K/N with K from 1 to N, as 1/16 to 16/16")
    return value


def parsed_shard(value: str) -> tuple[int, int]:
    """K and N of a --shard that has been accepted. Typer takes an option whose type is a tuple for two values."""
    k, _, n = value.partition("/")
    return int(k), int(n)


def path(text: str) -> Path:
    """For options where the current folder, which Path makes of nothing, is a mistake."""
    if not text:
        raise typer.BadParameter("an empty path; an unset variable?")
    return Path(text)


LabelMapOutput = Annotated[
    Path | None,
    typer.Option(
        "-o",
        parser=path,
        metavar="OUT",
        help="Label map to write, .nii.gz or .nii; anything else is a folder that gets {case}.nii.gz. Required.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="NAME_OR_FILE",
        autocompletion=weights_names,
        help=_WEIGHTS,
        rich_help_panel=NETWORK,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar=_DEVICES,
        autocompletion=_DEVICE_NAMES,
        callback=_device,
        help=_WHERE,
        rich_help_panel=NETWORK,
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        metavar=_DEVICES,
        autocompletion=_DEVICE_NAMES,
        callback=_devices,
        help=f"{_WHERE} Several GPUs, as in cuda:0,cuda:1, share the cases.",
        rich_help_panel=NETWORK,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        callback=_shard,
        metavar="K/N",
        help="Only the K-th of N equal shares of the cases, K from 1, as for a Slurm array.",
        show_default=False,
        rich_help_panel=IMAGES,
    ),
]
WeightsOfSegment = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="NAME_OR_FILE",
        autocompletion=weights_names,
        help=f"{_WEIGHTS} Given again: the mean of all.",
        show_default=DEFAULT,
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
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Equal bytes from run to run on a GPU too; the CPU gives them anyway.", rich_help_panel=NETWORK
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        metavar="N",
        help="Slices computed at once; halved when memory runs out.",
        show_default="CUDA 16, MPS 8, CPU 2; ONNX Runtime one for each thread up to 4",
        rich_help_panel=NETWORK,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead, one object a line.", rich_help_panel=OUTPUT)]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="No bar, no notes, no warnings; errors stay.", rich_help_panel=OUTPUT),
]


Cases = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CASES",
        help="Case folders, folders that hold case folders at any depth, tables (.csv or .tsv with the columns case, t1, t1ce, "
        "t2, flair and, if there is one, seg), or - for such paths on stdin, one a line.",
        show_default=False,
    ),
]
CaseName = Annotated[
    str | None,
    typer.Option(
        "--case",
        metavar="NAME",
        help="Name of the case.",
        show_default="what the file names share, else their folder",
        rich_help_panel=IMAGES,
    ),
]
Pattern = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODALITY=GLOB",
        help="File name of t1, t1ce, t2, flair or seg, where it is not as in BraTS (NAME_t1ce.nii.gz, NAME-t1c.nii.gz); may be "
        "given again for each. A folder is then one case.",
        show_default=False,
        rich_help_panel=IMAGES,
    ),
]
Channels = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C,D",
        help="What nnU-Net's _0000 to _0003 are, such as t1,t1ce,t2,flair.",
        show_default="what its dataset.json says",
        rich_help_panel=IMAGES,
    ),
]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing", help="Leave out cases whose outputs are complete and of the same inputs.", rich_help_panel=OUTPUT
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Write nothing; print what was found and would be done.", rich_help_panel=OUTPUT)
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        metavar="N",
        help="Worker processes; of one case, threads.",
        show_default="what Slurm, cgroup and affinity grant",
        rich_help_panel=OUTPUT,
    ),
]


def modality(name: str, *, required: bool = True) -> typer.models.OptionInfo:
    """An option that names the image of one modality."""
    option: typer.models.OptionInfo = typer.Option(
        metavar="FILE",
        help=f"{name} image, .nii or .nii.gz." + (" Required." if required else ""),
        show_default=False,
        rich_help_panel=IMAGES,
    )
    return option


def check_exclusive(*, skip_existing: bool, overwrite: bool) -> None:
    """Raise MisuseError where both are given."""
    if skip_existing and overwrite:
        raise MisuseError("--skip-existing and --overwrite exclude one another")
