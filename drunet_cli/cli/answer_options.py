"""Options of what `drunet segment` answers: what is averaged and cleaned up, and the files beside the label map."""

from enum import StrEnum
from typing import Annotated, Final

import typer

ANSWER: Final = "Answer"
FILES: Final = "More files, named beside the label map"


class TestTime(StrEnum):
    """What is averaged over at test time."""

    NONE = "none"
    FLIPS = "flips"


Tta = Annotated[
    TestTime,
    typer.Option(
        "--tta",
        metavar="none|flips",
        help="flips: the mean probabilities over the four in-plane flips, in four times the time.",
        rich_help_panel=ANSWER,
    ),
]
McSamples = Annotated[
    int,
    typer.Option(
        min=0,
        max=1000,
        metavar="N",
        help="The mean probabilities of N samples with dropout on, in N times the time (PyTorch); 0 is off.",
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
        help="Dropout rate of the samples.",
        show_default="as recorded in the weights; the published ones record none",
        rich_help_panel=ANSWER,
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the samples.", rich_help_panel=ANSWER)]
MinVolume = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="ML",
        help="Remove components of the whole tumour below so many mL.",
        rich_help_panel=ANSWER,
    ),
]
MinEnhancing = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="ML",
        help="Enhancing tumour below so many mL in all becomes necrotic core.",
        rich_help_panel=ANSWER,
    ),
]
Preview = Annotated[
    bool,
    typer.Option("--preview", help="A picture: three cuts through the tumour, {stem}_preview.png.", rich_help_panel=FILES),
]
Probabilities = Annotated[
    bool,
    typer.Option(
        "--probabilities",
        help="Probability of each class, 4D, {stem}_probabilities.nii.gz.",
        rich_help_panel=FILES,
    ),
]
Uncertainty = Annotated[
    bool,
    typer.Option(
        "--uncertainty",
        help="Uncertainty of WT, TC, ET, 0 to 100, {stem}_unc_whole.nii.gz and so on, and {stem}_entropy.nii.gz in nats.",
        rich_help_panel=FILES,
    ),
]
