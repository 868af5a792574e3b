"""Box plots of the scores over cases."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from drunet_cli.errors import MisuseError, plural

# Colours of the regions that a colour-blind reader can tell apart (Okabe and Ito).
REGION_COLOURS: Final = {"WT": "#0072B2", "TC": "#E69F00", "ET": "#009E73"}
_PANELS: Final = {"dice": "Dice", "hd95_mm": "HD95 (mm)"}
_JITTER: Final = 0.12
_HD95_TICKS_MM: Final = (0, 1, 3, 10, 30, 100, 373)


def check_plottable() -> None:
    """Raise MisuseError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MisuseError("--plot needs matplotlib, which is not installed; run: pip install matplotlib") from error


def box_plots(documents: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG picture: Dice and HD95 by region, every case a point. documents: the objects of `evaluate`, one a case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    regions = list(REGION_COLOURS)
    jitter = np.random.default_rng(0).uniform(-_JITTER, _JITTER, len(documents))
    for axes, (score, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        values = [[document["regions"][region][score] for document in documents] for region in regions]
        axes.boxplot(values, tick_labels=regions, showfliers=False, widths=0.5, medianprops={"color": "black"})
        for position, (region, of_region) in enumerate(zip(regions, values, strict=True), start=1):
            axes.scatter(position + jitter, of_region, s=26, color=REGION_COLOURS[region], alpha=0.7, linewidths=0, zorder=3)
        axes.set_ylabel(label)
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
        if score == "dice":
            axes.set_ylim(-0.03, 1.03)
        else:  # most distances are a few mm, that of a missed region is 373
            axes.set_yscale("symlog", linthresh=1)
            axes.set_yticks(_HD95_TICKS_MM, [str(tick) for tick in _HD95_TICKS_MM])
            axes.set_ylim(-0.2, 500)
    figure.suptitle(f"{plural(len(documents), 'case')}, convention {documents[0]['convention']}", fontsize="medium")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()
