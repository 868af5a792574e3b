"""Names and colours of label values for other viewers, the colours being those of our pictures.

Enhancing tumour has a row for 4 and one for 3, as no label map holds both: one file serves all label maps.
"""

import os
from pathlib import Path
from typing import Final

from drunet_cli.brats import CLASS_COLOURS, CLASS_NAMES, TUMOUR_CLASSES, Colour, Labels, label_value
from drunet_cli.io.atomic import write_atomically

ITKSNAP: Final = "labels_itksnap.txt"
SLICER: Final = "labels_slicer.ctbl"

_ROWS: Final[dict[int, tuple[str, Colour]]] = {
    label_value(index, labels): (f"{index.name} {CLASS_NAMES[index]}", CLASS_COLOURS[index])
    for index in TUMOUR_CLASSES
    for labels in sorted(Labels, reverse=True)
}


def colour_table(name: str) -> str:
    """The file of this name: label descriptions of ITK-SNAP, or a colour table of 3D Slicer."""
    if name == ITKSNAP:
        header = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
        lines = [_itksnap_row(0, (0, 0, 0), "Clear Label", shown=0)]
        lines += [_itksnap_row(value, colour, words, shown=1) for value, (words, colour) in _ROWS.items()]
    else:
        header = [f"# Color table file {SLICER}", f"# {1 + len(_ROWS)} values"]
        lines = ["0 Background 0 0 0 0"]
        for value, (words, (red, green, blue)) in _ROWS.items():
            lines.append(f"{value} {words.replace(' ', '_')} {red} {green} {blue} 255")
    return "\n".join([*header, *lines, ""])


def write_colour_tables(folder: Path) -> None:
    """Write both files where they are not there; what is there stays, as somebody may have changed the colours.

    Raises OutputError.
    """
    for name in (ITKSNAP, SLICER):
        if not os.path.lexists(folder / name):
            # Another run may write the same bytes at the same time.
            with write_atomically(folder / name, overwrite=True) as stream:
                stream.write(colour_table(name).encode())


def _itksnap_row(value: int, colour: Colour, words: str, *, shown: int) -> str:
    red, green, blue = colour
    return f'{value:5}{red:6}{green:5}{blue:5}{shown:9}{shown:3}{shown:3}    "{words}"'
