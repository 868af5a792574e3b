"""Options of what `drunet segment` answers: what is averaged and cleaned up, and the files beside the label map."""

from enum import StrEnum
from typing import Annotated, Final

import typer

ANSWER: Final = "Averaging and cleaning up"
FILES: Final = "More files, beside the label map NAME.nii.gz"


class TestTime(StrEnum):
    """What is averaged over at test time."""

    NONE = "none"
    FLIPS = "flips"


Tta = Annotated[
    TestTime,
    typer.Option(
        "--tta",
        metavar="none|flips",
        help="flips: average the probabilities over the slice and its three flips; takes four times as long.",
        rich_help_panel=ANSWER,
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
        rich_help_panel=ANSWER,
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
        rich_help_panel=ANSWER,
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of --mc-samples.", rich_help_panel=ANSWER)]
MinVolume = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="ML",
        help="Remove connected parts of the whole tumour that are smaller than this, in mL.",
        rich_help_panel=ANSWER,
    ),
]
MinEnhancing = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="ML",
        help="Where there is less enhancing tumour than this in all, in mL, call it necrotic core.",
        rich_help_panel=ANSWER,
    ),
]
Preview = Annotated[
    bool,
    typer.Option(
        "--preview", help="NAME_preview.png: three cuts through the tumour, with outlines and volumes.", rich_help_panel=FILES
    ),
]
Probabilities = Annotated[
    bool,
    typer.Option(
        "--probabilities",
        help="NAME_probabilities.nii.gz: 4D, the probability of each class.",
        rich_help_panel=FILES,
    ),
]
Uncertainty = Annotated[
    bool,
    typer.Option(
        "--uncertainty",
        help="NAME_unc_whole.nii.gz, _unc_core and _unc_enhance: uncertainty of WT, TC and ET, 0 (certain) to 100. "
        "NAME_entropy.nii.gz: entropy of the classes, in nats.",
        rich_help_panel=FILES,
    ),
]
