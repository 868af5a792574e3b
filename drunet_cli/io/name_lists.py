"""Names of files in messages about what was not found, in a line of bounded length."""

from collections.abc import Sequence
from typing import Final

from drunet_cli.errors import listed
from drunet_cli.io.naming import is_nifti

# In a message about what was not found: so many names of what was, of a folder with no more images than that all of them.
MOST_NAMES: Final = 6
_LONGEST_NAME: Final = 60


def found_instead(names: Sequence[str]) -> str:
    """What there is where no case is, and what to do."""
    if images := [name for name in names if is_nifti(name)]:
        return f"{names_listed(images)}; say by --pattern MODALITY=GLOB which are which, such as t1ce='*_contrast.nii.gz'"
    if names:
        return f"no .nii.gz or .nii but {names_listed(names)}; convert the images to NIfTI first, or name another folder"
    return "no file at all; name another folder"


def names_listed(names: Sequence[str]) -> str:
    """The first of them, shortened, and how many more there are."""
    return listed([*map(shortened, names[:MOST_NAMES]), *names[MOST_NAMES:]], most=MOST_NAMES)


def shortened(name: str) -> str:
    """The same, or its beginning and end."""
    cut = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:cut]}...{name[-cut:]}"
