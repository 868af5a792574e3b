"""Options that several commands share, and all options of `segment`; and what Tab offers for them.

Typer reads these annotations when it runs.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from drunet_cli.brats import REGIONS, Modality
from drunet_cli.errors import MisuseError, WeightsError
from drunet_cli.host import check_device_name
from drunet_cli.weights.registry import BUNDLED, DEFAULT, ENTRIES, cached_names


def one_of(words: Iterable[str]) -> Callable[[str], list[str]]:
    """The completion of an option that takes one of these words."""
    offered = list(words)

    def beginning_with(incomplete: str) -> list[str]:
        return [word for word in offered if word.startswith(incomplete)]

    return beginning_with


def weights_names(incomplete: str) -> list[str]:
    """The weights that `drunet weights list` lists."""
    try:
        cached = cached_names()
    except (OSError, WeightsError):  # the command that is being typed will say so
        cached = []
    return one_of(dict.fromkeys([*ENTRIES, *BUNDLED, *cached]))(incomplete)


_DEVICE_NAMES: Final = one_of(("auto", "cpu", "cuda", "mps"))  # only PyTorch could tell which of them this machine has
_SHARD: Final = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)
_WEIGHTS: Final = "Trained weights: a name (drunet weights list), or a .h5 or .safetensors file."
_GRANTED: Final = "all that Slurm, cgroup and affinity grant"

IMAGES: Final = "Images"
OUTPUT: Final = "Output"
NETWORK: Final = "Network"


def _device(value: str) -> str:
    try:
        check_device_name(value)
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
    """Parse a path. An empty one, of which Path makes the current folder, is a mistake."""
    if not text:
        raise typer.BadParameter("an empty path; an unset variable?")
    return Path(text)


def flag(*names: str, help: str, panel: str) -> Any:  # noqa: A002  # as Typer calls it
    """An option that is given or not. panel: under which heading of the help it stands."""
    return typer.Option(*names, help=help, rich_help_panel=panel)


def count(help: str, *, default: str | bool, panel: str) -> Any:  # noqa: A002
    """An option that takes a whole number from 1 to 1024. default: in words; True for the default itself."""
    return typer.Option(min=1, max=1024, metavar="N", help=help, show_default=default, rich_help_panel=panel)


Workbook = Annotated[
    Path | None,
    typer.Option(
        "--xlsx",
        parser=path,
        metavar="FILE",
        help="The same table for Excel and LibreOffice, where a CSV file loses its decimal points if the computer writes "
        "them as commas.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
LabelMapOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        parser=path,
        metavar="OUT",
        help="Label map to write (.nii.gz or .nii), or a folder, which gets CASE.nii.gz for each case. Required.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Bids = Annotated[
    bool,
    flag(
        "--bids",
        help="Make the folder OUT a BIDS derivatives data set, with names as BIDS has them: see drunet guide bids.",
        panel=OUTPUT,
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
        "--device",  # Typer before 0.29 would make --DEVICE of it
        metavar="DEVICE",
        autocompletion=_DEVICE_NAMES,
        callback=_device,
        help=(
            "Where to compute: auto (the first CUDA GPU, else the CPU), cpu, cuda, cuda:N (GPU N, from 0) or mps (Apple). "
            "A device that you name and that is absent is an error."
        ),
        rich_help_panel=NETWORK,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        callback=_shard,
        metavar="K/N",
        help="Take only share K (from 1) of N shares of the cases, as one task of a Slurm array.",
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
        help=f"{_WEIGHTS} May be given again, or be the folder of a cross-validation: probabilities are then averaged.",
        show_default=DEFAULT,
        rich_help_panel=NETWORK,
    ),
]
Threads = Annotated[int | None, count("CPU threads that compute.", default=_GRANTED, panel=NETWORK)]
Deterministic = Annotated[
    bool, flag("--deterministic", help="The same bytes in every run, on a GPU too; a CPU gives them anyway.", panel=NETWORK)
]
BatchSize = Annotated[
    int | None,
    count(
        "Slices computed at once; halved when memory runs out.",
        default="CUDA 16, MPS 8, CPU 2; ONNX Runtime 1 a thread, at most 4",
        panel=NETWORK,
    ),
]
Overwrite = Annotated[bool, flag("--overwrite", help="Replace existing outputs; they are an error otherwise.", panel=OUTPUT)]
Json = Annotated[bool, flag("--json", help="Print JSON, one object a line, instead of paths or a table.", panel=OUTPUT)]
Quiet = Annotated[bool, flag("--quiet", "-q", help="No progress bar, notes or warnings; errors stay.", panel=OUTPUT)]
Verbose = Annotated[
    bool,
    flag("--verbose", "-v", help="Say on stderr what is decided, and why: engine, threads, geometry, times.", panel=OUTPUT),
]
Log = Annotated[
    Path | None,
    typer.Option(
        "--log",
        parser=path,
        metavar="FILE",
        help="Append what stderr is told to this file too, each line with time and host; all of it, also with --quiet.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Cases = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CASES",
        help="Case folders; folders that hold case folders at any depth; tables (.csv or .tsv with the columns case, t1, t1ce, "
        "t2, flair and, where there is a segmentation, seg); or - for such paths on stdin, one a line or by find -print0.",
        show_default=False,
    ),
]
CaseName = Annotated[
    str | None,
    typer.Option(
        "--case",
        metavar="NAME",
        help="Name of the case, for its outputs.",
        show_default="what the file names share, else their folder",
        rich_help_panel=IMAGES,
    ),
]
Pattern = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODALITY=GLOB",
        help="File names that drunet does not know, or one of two that it does: t1ce='*_CE_late.nii.gz', and so on for t1, "
        "t2, flair and seg, each by its own --pattern. A folder in which a pattern matches is one case, and the pattern "
        "replaces the built-in names of its modality there; other folders are read as without patterns.",
        show_default=False,
        rich_help_panel=IMAGES,
    ),
]
Channels = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C,D",
        help="For file names of nnU-Net: which images _0000, _0001, _0002 and _0003 are, such as t1,t1ce,t2,flair.",
        show_default="what its dataset.json says",
        rich_help_panel=IMAGES,
    ),
]
SkipExisting = Annotated[
    bool,
    flag(
        "--skip-existing",
        help="Go on where an interrupted run stopped: leave out cases whose outputs are complete, and were made of the same "
        "inputs in the same way.",
        panel=OUTPUT,
    ),
]
Strict = Annotated[
    bool,
    flag(
        "--strict",
        help="Let a case fail, and write nothing of it, when a warning says that its label map is likely wrong, such as "
        "an image that is not skull-stripped (drunet guide check).",
        panel=OUTPUT,
    ),
]
DryRun = Annotated[
    bool, flag("--dry-run", help="Write nothing; print which cases were found and what would be done.", panel=OUTPUT)
]
Jobs = Annotated[
    int | None, count("Cases worked on at once, each by a process; of one case, threads.", default=_GRANTED, panel=OUTPUT)
]


def modality(name: str, *, required: bool = True) -> typer.models.OptionInfo:
    """An option that names the image of one modality."""
    option: typer.models.OptionInfo = typer.Option(
        parser=path,
        metavar="FILE",
        help=f"{name} image, .nii or .nii.gz." + (" Required." if required else ""),
        show_default=False,
        rich_help_panel=IMAGES,
    )
    return option


def check_cases(cases: object, files: Mapping[str, object], only_with_cases: Mapping[str, object]) -> None:
    """Raise MisuseError unless either CASES or the files of one case are given.

    files: the options of one case, by name. only_with_cases: the options that make no sense for one case.
    """
    one_case = any(value is not None for value in files.values())
    if not (cases or one_case):
        raise MisuseError("missing CASES: name folders or tables of cases, or give --t1 --t1ce --t2 --flair")
    if one_case and (cases or any(only_with_cases.values())):
        raise MisuseError(f"CASES ({', '.join(only_with_cases)}) and {' '.join(files)} exclude one another")


def check_exclusive(*, skip_existing: bool, overwrite: bool) -> None:
    """Raise MisuseError where both options are given."""
    if skip_existing and overwrite:
        raise MisuseError("--skip-existing and --overwrite exclude one another")


Prepare = Annotated[
    bool,
    flag(
        "--prepare",
        help="Take raw scans, with skull and on any grids, or DICOM: prepare them first, as drunet prepare does by default.",
        panel=IMAGES,
    ),
]
KeepPrepared = Annotated[
    Path | None,
    typer.Option(
        "--keep-prepared",
        metavar="DIR",
        parser=path,
        help="With --prepare: keep the prepared cases in DIR, and use those that are complete there. Else they are removed.",
        show_default=False,
        rich_help_panel=IMAGES,
    ),
]


AVERAGING: Final = "Averaging and cleaning up"
FILES: Final = "More files, beside the label map NAME.nii.gz"


class TestTime(StrEnum):
    """The averaging at test time."""

    NONE = "none"
    FLIPS = "flips"


Tta = Annotated[
    TestTime,
    typer.Option(
        "--tta",
        metavar="none|flips",
        help="flips: average the probabilities over the slice and its three flips; takes four times as long.",
        rich_help_panel=AVERAGING,
    ),
]
McSamples = Annotated[
    int,
    typer.Option(
        min=0,
        max=1000,
        metavar="N",
        help="Monte Carlo dropout: average the probabilities of N passes with dropout on, in PyTorch; takes N times as long. "
        "0 is off.",
        rich_help_panel=AVERAGING,
    ),
]
DropoutRate = Annotated[
    float | None,
    typer.Option(
        "--dropout",
        metavar="P",
        min=0.0,
        max=0.95,
        help="Dropout rate of those passes.",
        show_default="as recorded in the weights; the published ones record none, so give it",
        rich_help_panel=AVERAGING,
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of --mc-samples.", rich_help_panel=AVERAGING)]
WithinBrain = Annotated[
    bool, flag("--within-brain", help="Remove labels where all four images are background (0 or below).", panel=AVERAGING)
]


class Postprocess(StrEnum):
    """The source of the limits of post-processing: the options, or the weights."""

    NONE = "none"
    RECOMMENDED = "recommended"


Postprocessing = Annotated[
    Postprocess,
    typer.Option(
        "--postprocess",
        metavar="none|recommended",
        help="recommended: take the --min-volume and --min-enhancing that the weights record (drunet weights info); they were "
        "chosen on cases held out of the training.",
        rich_help_panel=AVERAGING,
    ),
]


def volumes_ml(text: str) -> float | tuple[float, ...]:
    """Parse one volume in mL, or three, one for each region."""
    try:
        volumes = tuple(float(volume) for volume in text.split(","))
    except ValueError:
        volumes = ()
    if len(volumes) not in (1, len(REGIONS)) or not all(0 <= volume < math.inf for volume in volumes):
        raise typer.BadParameter(f"{text!r} is neither a volume in mL nor three of them, such as 1 or 1,0.5,0.1")
    return volumes if len(volumes) > 1 else volumes[0]


MinVolume = Annotated[
    Any,
    typer.Option(
        parser=volumes_ml,
        metavar="ML[,ML,ML]",
        help="Remove connected parts of the whole tumour that are smaller than this, in mL. With three volumes, also turn "
        "parts of the core below the second into oedema, and of enhancing tumour below the third into necrotic core.",
        rich_help_panel=AVERAGING,
    ),
]
MinEnhancing = Annotated[
    float,
    typer.Option(
        min=0,
        max=10_000,  # more than a head holds; infinity is not asked for
        metavar="ML",
        help="Turn all enhancing tumour into necrotic core if there is less than this in all, in mL.",
        rich_help_panel=AVERAGING,
    ),
]
Preview = Annotated[
    bool, flag("--preview", help="NAME_preview.png: three cuts through the tumour, with outlines and volumes.", panel=FILES)
]
Viewer = Annotated[
    bool,
    flag(
        "--viewer",
        help="NAME_view.html: a page for the browser that shows all slices in three planes, with the labels; it needs no "
        "other file and no network, and has at most 6 MB.",
        panel=FILES,
    ),
]
InSpace = Annotated[
    list[Modality] | None,
    typer.Option(
        "--in-space",
        metavar="MODALITY",
        help="NAME_in_t1ce.nii.gz: the labels on that raw scan's own grid too, t1, t1ce, t2 or flair. For cases of drunet "
        "prepare. May be given again.",
        show_default=False,
        rich_help_panel=FILES,
    ),
]
DicomSeg = Annotated[
    bool,
    flag(
        "--dicom-seg",
        help="NAME_in_t1ce.dcm: a DICOM segmentation object on the series of T1ce, or of the scans that --in-space names. "
        "With --prepare, for cases from DICOM. Needs the extra dicom.",
        panel=FILES,
    ),
]
Probabilities = Annotated[
    bool, flag("--probabilities", help="NAME_probabilities.nii.gz: 4D, the probability of each class.", panel=FILES)
]
Uncertainty = Annotated[
    bool,
    flag(
        "--uncertainty",
        help="NAME_unc_whole.nii.gz, _unc_core and _unc_enhance: uncertainty of WT, TC and ET, 0 (certain) to 100. "
        "NAME_entropy.nii.gz: entropy of the classes, in nats.",
        panel=FILES,
    ),
]
