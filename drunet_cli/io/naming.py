"""File names: the modality, segmentation or channel number that they tell, and the name of the case. Reads no voxel."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeAlias

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.errors import CaseError, MisuseError

WORDS: Final[Mapping[str, Modality]] = {
    **dict.fromkeys(("flair", "t2f", "t2flair"), Modality.FLAIR),
    **dict.fromkeys(("t1ce", "t1c", "t1gd", "t1gad", "t1post"), Modality.T1CE),
    **dict.fromkeys(("t1", "t1n", "t1pre"), Modality.T1),
    **dict.fromkeys(("t2", "t2w"), Modality.T2),
}
# Where all four are named, T1w can only be the one without contrast agent (Task01_BrainTumour: FLAIR, T1w, t1gd, T2w).
_CHANNEL_WORDS: Final = {**WORDS, "t1w": Modality.T1}
# With contrast agent, and without. A single c, post and pre are parts of other names too (patient C, after surgery).
_AGENT: Final = frozenset(
    ("gd", "gad", "gado", "gadolinium", "ce", "km", "contrast", "enhanced", "postcontrast", "postgd", "postgad")
)
_NO_AGENT: Final = frozenset(("precontrast", "noncontrast", "nocontrast", "nonenhanced", "unenhanced", "nogd", "nongd"))
_NEGATIONS: Final = frozenset(("pre", "non", "no", "without", "wo"))
SEGMENTATION: Final = "seg"
CHANNEL_NUMBERS: Final = ("0000", "0001", "0002", "0003")  # nnU-Net's
_ANY_NUMBER: Final = re.compile(r"[0-9]{4}")
NIFTI_SUFFIXES: Final = (".nii.gz", ".nii")
_SEPARATORS: Final = "_-. "
_NO_FILE_NAME: Final = re.compile(r"\.*|.*[/\x00-\x1f\x7f-\x9f\u2028\u2029].*", re.DOTALL)

Channels: TypeAlias = tuple[Modality, ...]


@dataclass(frozen=True)
class Naming:
    """How files are told apart where the built-in words do not suffice: --pattern and --channels.

    patterns: a modality or "seg" to a glob of the file name. A modality with a pattern is found by its pattern alone, and a
    folder is then one case. channels: the modalities of nnU-Net's _0000, _0001, _0002 and _0003; without them a dataset.json
    must name these.
    """

    patterns: Mapping[str, str] = field(default_factory=dict)
    channels: Channels | None = None

    def expected(self, roles: Iterable[str]) -> str:
        """The file names that were looked for, for messages."""
        return ", ".join(self.patterns.get(role, f"NAME_{role}.nii.gz") for role in roles)


BUILT_IN: Final = Naming()


def is_nifti(name: str) -> bool:
    """Whether a file of this name is taken for a NIfTI file."""
    return name.lower().endswith(NIFTI_SUFFIXES)


def stem(path: Path) -> str:
    """The file name without .nii or .nii.gz."""
    for suffix in NIFTI_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def words(path: Path) -> list[str]:
    """The words of a file's stem, in small letters."""
    return re.split(r"[^a-z0-9]+", stem(path).lower())


def modality_in_name(path: Path) -> Modality | None:
    """The modality that the last telling word of a file name stands for; None where no word does, or T1w, which may be either.

    Beside a plain T1 or T1w the other words say whether a contrast agent was given: T1_post, T1w_Gd, T1_noncontrast.
    """
    found = words(path)
    last = next((word for word in reversed(found) if word in WORDS), "t1w" if "t1w" in found else None)
    if last is None or last not in ("t1", "t1w"):
        return None if last is None else WORDS[last]
    pairs = list(zip(["", *found], found, strict=False))
    if any(word in _AGENT and before not in _NEGATIONS for before, word in pairs):
        return Modality.T1CE
    if any(word in _NO_AGENT or (word in _AGENT and before in _NEGATIONS) for before, word in pairs):
        return Modality.T1
    after = found[len(found) - found[::-1].index(last) :]
    if not {"post", "c"}.isdisjoint(after):
        return Modality.T1CE
    if last == "t1w":
        return Modality.T1 if "pre" in after else None
    return None if "post" in found else Modality.T1


def roles_in_name(image: str, naming: Naming) -> tuple[str, list[str]]:
    """The part of a file's name before its last word, and what the file may be: modalities, "seg", or a channel's number."""
    if matched := [role for role, glob in naming.patterns.items() if fnmatchcase(image, glob)]:
        return "", matched
    before, word = before_and_last_word(stem(Path(image)))
    word = word.lower()
    role = SEGMENTATION if word == SEGMENTATION else WORDS.get(word)
    if _ANY_NUMBER.fullmatch(word) and naming.patterns.keys() <= {SEGMENTATION}:  # else the patterns say what is an image
        role = word
    return before, [role] if role is not None and role not in naming.patterns else []


def parse_patterns(options: Iterable[str]) -> dict[str, str]:
    """Naming.patterns from options MODALITY=GLOB. Raises MisuseError."""
    patterns: dict[str, str] = {}
    for option in options:
        word, _, glob = option.partition("=")
        word = word.strip().lower()
        role = SEGMENTATION if word == SEGMENTATION else WORDS.get(word)
        if not glob:
            raise MisuseError(f"--pattern {option}: write MODALITY=GLOB, such as t1ce=*_contrast.nii.gz")
        if role is None:
            raise MisuseError(f"--pattern {option}: {word!r} is none of {', '.join(CHANNELS)}, {SEGMENTATION}")
        if "/" in glob:
            raise MisuseError(f"--pattern {option}: only the file name is compared; leave out the folders and the /")
        if role in patterns:
            raise MisuseError(f"--pattern {option}: {role} has the pattern {patterns[role]} already; give one")
        patterns[role] = glob
    return patterns


def parse_channels(option: str) -> Channels:
    """Naming.channels from an option such as t1,t1ce,t2,flair. Raises MisuseError."""
    channels = _channels_named(option.split(","))
    if channels is None:
        raise MisuseError(f"--channels {option}: name {', '.join(CHANNELS)} once each, in the order of _0000 to _0003")
    return channels


def described_channels(folder: Path) -> Channels:
    """The modalities of _0000 to _0003 by nnU-Net's dataset.json, version 1 or 2, in the folder or beside it.

    Raises CaseError.
    """
    folder = with_a_name(folder)
    for path in (folder / "dataset.json", folder.parent / "dataset.json"):
        if os.path.isfile(path):  # noqa: PTH113  # unlike Path.is_file it raises for no path
            return _channels_of_dataset(path)
    remedy = "give --channels with the four in order, such as t1,t1ce,t2,flair"
    raise CaseError(f"{folder}: nothing says which modalities _0000 to _0003 are; {remedy}")


def before_and_last_word(text: str) -> tuple[str, str]:
    """The part before the last word, and that word, both without the separators around them: _, -, . and space."""
    text = text.strip(_SEPARATORS)
    cut = _end_of_words(text)
    return text[:cut].strip(_SEPARATORS), text[cut:]


def common_stem(paths: Sequence[Path]) -> str:
    """The whole words that the stems of all files begin with; empty where they share none."""
    stems = [stem(path) for path in paths]
    # Cut back to a whole word: a_t1, a_t1ce, a_t2 and a_flair share "a"; T1w and T1wce share nothing worth a name.
    shared = os.path.commonprefix(stems)  # noqa: RUF071  # of names, not of paths
    return (shared if shared in stems else shared[: _end_of_words(shared)]).strip(_SEPARATORS)


def may_name_a_file(case: str) -> bool:
    """Whether a case of this name can have files: no folder, and no line break, which scripts that read paths would split."""
    return not _NO_FILE_NAME.fullmatch(case)


def with_a_name(folder: Path) -> Path:
    """The same folder, by a path that ends in its name and not in "." or ".."."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def _channels_of_dataset(path: Path) -> Channels:
    try:
        dataset = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CaseError(f"{path}: cannot be read as JSON ({error}); mend it, or give --channels") from error
    names = (dataset.get("channel_names") or dataset.get("modality")) if isinstance(dataset, dict) else None
    if not isinstance(names, dict):
        raise CaseError(f"{path}: has no channel_names; give --channels with the modalities of _0000 to _0003 in order")
    channels = _channels_named([str(names.get(str(number))) for number in range(len(names))])
    if channels is None:
        described = ", ".join(f"{number}: {name}" for number, name in names.items())
        raise CaseError(f"{path}: its channels ({described}) are not FLAIR, T1ce, T1 and T2 once each; --channels names them")
    return channels


def _channels_named(names: Iterable[str]) -> Channels | None:
    """The modalities by these names; None unless they are all four, once each."""
    channels = [_CHANNEL_WORDS.get(re.sub(r"[^a-z0-9]", "", name.lower())) for name in names]
    known = tuple(modality for modality in channels if modality is not None)
    return known if len(channels) == len(CHANNELS) and set(known) == set(CHANNELS) else None


def _end_of_words(text: str) -> int:
    return max(text.rfind(separator) for separator in _SEPARATORS) + 1
