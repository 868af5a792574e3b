"""File names: which image and which case a name tells, and the names of results, in a BIDS data set too. Reads no voxel.

The second half has the names of BIDS derivatives, such as

    sub-01/ses-1/anat/sub-01_ses-1_space-orig_desc-tumour_dseg.nii.gz

Source: BIDS 1.10, "Derivatives: imaging data types" and the order of entities in its appendix.
"""

import itertools
import json
import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeAlias

from drunet_cli.brats import CHANNELS, UNCERTAINTY_MAPS, Modality
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
    ("gd", "gad", "gado", "gadolinium", "ce", "km", "contrast", "enhanced", "postcontrast", "postgd", "postgad", "postkm")
)
_NO_AGENT: Final = frozenset(
    ("precontrast", "noncontrast", "nocontrast", "nonenhanced", "unenhanced", "nogd", "nongd", "nativ", "native")
)
_NEGATIONS: Final = frozenset(("pre", "non", "no", "without", "wo", "ohne"))
# Sequences that tell the modality. An MPRAGE is a T1, before the contrast agent or after it; dark fluid is Siemens' FLAIR, and
# so is a TIRM of the brain.
_SEQUENCES: Final = {"mprage": "t1w", "darkfluid": "flair", "tirm": "flair"}
# Words on how an image was taken, which do not tell its modality.
_MANNERS: Final = frozenset(
    (
        *("2d", "3d", "se", "tse", "fse", "gre", "spc", "space", "cube", "vista", "vibe", "bravo", "spgr", "fspgr", "tfe"),
        *("ax", "axial", "tra", "transversal", "sag", "sagittal", "cor", "coronal", "iso", "fs", "mit", "with"),
    )
)
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

    patterns: a modality or "seg" to a glob of the file name. A folder in which a pattern matches is one case, and a modality
    with a pattern is found there by its pattern alone; other folders are read as without patterns.
    channels: the modalities of nnU-Net's _0000, _0001, _0002 and _0003; without them a dataset.json must name these.
    """

    patterns: Mapping[str, str] = field(default_factory=dict)
    channels: Channels | None = None

    def roles_by_pattern(self, image: str) -> list[str]:
        """The roles of a file by the patterns: modalities, or "seg"."""
        return [role for role, glob in self.patterns.items() if fnmatchcase(image, glob)]

    def roles_beside_patterns(self, image: str, role: str | None) -> list[str]:
        """The roles of a file in a folder in which a pattern matches. role: by the words of its name.

        A channel's number counts only where no image has a pattern: else the patterns say what is an image.
        """
        if matched := self.roles_by_pattern(image):
            return matched
        of_patterns = role in self.patterns or (role in CHANNEL_NUMBERS and not self.patterns.keys() <= {SEGMENTATION})
        return [] if role is None or of_patterns else [role]

    def expected(self, roles: Iterable[str], *, by_pattern: bool = False, bids_case: str = "") -> str:
        """The file names that were looked for, for messages. by_pattern: in a folder in which a pattern matches.

        bids_case: the case, where its other files are named as BIDS has it.
        """
        names = {role: [self.patterns[role]] if role in self.patterns else [] for role in roles}
        ends = {role: f"{bids_case}_{_BIDS_ENDS[role]}" if bids_case else f"NAME_{role}" for role in names}
        built_in = {role: [] if by_pattern and found else [f"{ends[role]}.nii.gz"] for role, found in names.items()}
        return ", ".join(name for role in names for name in (*names[role], *built_in[role]))


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
    return _modality_of([word for _, word in _known_words(stem(path))])


def _modality_of(named: Sequence[str]) -> Modality | None:
    found = [_SEQUENCES.get(word, word) for word in named]
    last = next((word for word in reversed(found) if word in WORDS), "t1w" if "t1w" in found else None)
    if last == "flair" and "flair" not in named and not {"t1", "t1w"}.isdisjoint(named):
        return None  # a T1 with dark fluid is no FLAIR
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


_WORD: Final = re.compile(r"[^\W_]+")
_MPRAGE: Final = re.compile(r"mp[-_. ]?rage", re.IGNORECASE)
_ACCELERATED: Final = re.compile(r"(?<![^\W_])p[2-4][-_. ]iso", re.IGNORECASE)  # Siemens; p2 alone may be a patient
_DARK_FLUID: Final = re.compile(r"dark[-_. ]?fluid|(?<![^\W_])da-fl(?![^\W_])", re.IGNORECASE)
_BASES: Final = {
    word: Modality.T1 if modality is Modality.T1CE else modality
    for word, modality in {**_CHANNEL_WORDS, **{word: _CHANNEL_WORDS[plain] for word, plain in _SEQUENCES.items()}}.items()
}
_BESIDE: Final = _AGENT | _NO_AGENT | _MANNERS
_PARTS: Final = "|".join(sorted({*_BASES, *_BESIDE, "post", "pre"}, key=len, reverse=True))
_GLUED: Final = re.compile(f"(?:{_PARTS})+")


def _known_words(text: str) -> list[tuple[str, str]]:
    """The words of a name in small letters, each after all that stands before it; t2tse is two words, and dark-fluid is one."""
    text = _DARK_FLUID.sub("darkfluid", _MPRAGE.sub("mprage", _ACCELERATED.sub("iso", text)))
    known = []
    for found in _WORD.finditer(text):
        word = found[0].lower()
        parts = re.findall(_PARTS, word) if _GLUED.fullmatch(word) else [word]
        known += [(text[: found.start()], part) for part in parts]
    return known


def role_by_last_word(image: str) -> tuple[str, str | None]:
    """The part of a file's name before its last word, and the modality, "seg" or channel's number that this word is."""
    before, word = before_and_last_word(stem(Path(image)))
    word = word.lower()
    if word == SEGMENTATION or _ANY_NUMBER.fullmatch(word):
        return before, word
    return before, WORDS.get(word)


def role_by_words(image: str) -> tuple[str, str | None]:
    """The same by all known words at the end of the name, as in p1_t1_mprage_sag_post; else as `role_by_last_word` has it.

    An MPRAGE without another word is taken for T1. A name that follows BIDS is read as BIDS has it.
    """
    if (by_bids := _role_in_bids(image)) is not None:
        return by_bids
    run: list[tuple[str, str]] = []
    for before, word in reversed(_known_words(stem(Path(image)))):
        is_told = any(later in _BASES for _, later in run)
        if word.isdecimal():  # of a series or a resolution, behind the modality; nnU-Net's four digits are a channel
            is_known = not is_told and len(word) != len(CHANNEL_NUMBERS[0])
        elif word in _NEGATIONS or word in ("post", "c"):  # before the modality they may be of the name: patient C, session pre
            is_known = not is_told or (word in _NEGATIONS and run[0][1] in _AGENT)
        else:
            is_known = word in _BASES or word in _BESIDE
        if not is_known:
            break
        run.insert(0, (before, word))
    found = [word for _, word in run]
    bases = {_BASES[word] for word in found if word in _BASES}
    if bases == {Modality.T1}:
        modality = _modality_of(found) or (Modality.T1 if "mprage" in found else None)
    elif bases <= {Modality.T2, Modality.FLAIR}:  # T2 alone, or T2 FLAIR
        modality = Modality.FLAIR if Modality.FLAIR in bases else next(iter(bases), None)
    else:
        modality = None
    return role_by_last_word(image) if modality is None else (run[0][0].strip(_SEPARATORS), modality)


_BIDS_ENDS: Final[Mapping[str, str]] = {
    Modality.FLAIR: "FLAIR",
    Modality.T1CE: "ce-gd_T1w",
    Modality.T1: "T1w",
    Modality.T2: "T2w",
}
_BIDS: Final = re.compile(r"(sub-[^\W_]+(?:_ses-[^\W_]+)?)((?:_[a-zA-Z]+-[^\W_]+)*)_(T1w|T2w|FLAIR)")


def is_scan_in_bids(image: str) -> bool:
    """Whether a file's name is that of a T1w, a T2w or a FLAIR of a subject in BIDS."""
    return _BIDS.fullmatch(stem(Path(image))) is not None


def _role_in_bids(image: str) -> tuple[str, Modality] | None:
    """Subject and session of a name that follows BIDS, as the case's name, and the modality; None for other names.

    A T1w is T1ce by its entity ce, or by a word for a contrast agent in another one (acq-post), and else T1.
    """
    found = _BIDS.fullmatch(stem(Path(image)))
    if found is None:
        return None
    case, entities, suffix = found.groups()
    if suffix != "T1w":
        return case, WORDS[suffix.lower()]
    named = [word for _, word in _known_words(entities)]
    return case, _modality_of([*named, "t1w"]) or (Modality.T1CE if "post" in named else Modality.T1)


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
        if os.path.isfile(path):
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


def names_by_folder(
    name: str, folders: Sequence[Path], *, tops: Sequence[Path], of_files: bool, taken: Container[str]
) -> list[str] | None:
    """Names that tell several cases of one name apart, by the folders that they lie in; None where these give none.

    A case gets the name of its folder at the first level at which all differ (P01/MR and P02/MR: P01, P02), or the names at all
    levels at which some differ (P01_day1, P01_day2, P02_day1). tops: the sources in which they were found; the levels above
    these count only where those below do not suffice. of_files: the name comes from the files and not from the folder, and
    stays behind the folder's, as it does where the folder's is taken.
    """
    below = [_parts_below(folder, top) for folder, top in zip(folders, tops, strict=True)]
    above = [Path(os.path.abspath(folder)).parts for folder in folders]  # noqa: PTH100  # of the path as it is, links and all
    for parts in (below, above):
        if all(each[-1:] == (name,) for each in above):
            parts = [each[:-1] for each in parts]
        by_folder = _distinct_names(parts) or []
        for names in ([] if of_files else by_folder, [f"{each}_{name}" for each in by_folder]):
            if names and all(may_name_a_file(new) and new not in taken for new in names):
                return names
    return None


def _parts_below(folder: Path, top: Path) -> tuple[str, ...]:
    return folder.relative_to(top).parts if folder.is_relative_to(top) else ()


def _distinct_names(folders: Sequence[Sequence[str]]) -> list[str] | None:
    """The names at the first level at which all folders differ, else those at all levels at which some differ; else None."""
    levels = [level for level in itertools.zip_longest(*folders, fillvalue="") if len(set(level)) > 1]
    joined = tuple("_".join(filter(None, parts)) for parts in zip(*levels, strict=True))
    return next((list(names) for names in (*levels, joined) if all(names) and len(set(names)) == len(folders)), None)


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


ORIGINAL_SPACE: Final = "orig"  # BIDS' word for the space of the input images
BRATS_SPACE: Final = "BraTS"  # of the images that drunet has prepared; no template that BIDS lists
SUBJECT_AND_SESSION: Final = "sub-LABEL or sub-LABEL_ses-LABEL"
_LABEL: Final = "[0-9A-Za-z]+"
# Entities that tell the scans of one session apart may follow; those on the processing of images are not of a case's name.
_CASE: Final = re.compile(
    rf"(?P<subject>sub-{_LABEL})(?:_(?P<session>ses-{_LABEL}))?"
    rf"(?:_acq-{_LABEL})?(?:_ce-{_LABEL})?(?:_rec-{_LABEL})?(?:_run-[0-9]+)?"
)
_PROCESSING: Final = f"(?:_(?:space|seg|res|den|label|desc)-{_LABEL})*"
_SPACE: Final = re.compile(rf"_space-({_LABEL})(?=_)")
_SEGMENTATION: Final = re.compile(rf"(?P<case>{_CASE.pattern}){_PROCESSING}_dseg")
_OURS: Final = re.compile(rf"(?P<case>{_CASE.pattern})_space-(?P<space>{_LABEL})_desc-tumour_dseg")
_SCANS: Final = frozenset(modality.display for modality in Modality)


def is_case_name(name: str) -> bool:
    """Whether a case can have outputs in a data set: sub-01, sub-01_ses-1, with acq, ce, rec and run behind these."""
    return _CASE.fullmatch(name) is not None


def space_of(image: Path) -> str:
    """The space that the name of an image tells, else that of the image itself."""
    found = _SPACE.search(stem(image)) if image.name.startswith("sub-") else None
    return ORIGINAL_SPACE if found is None else found[1]


def label_map_in(dataset: Path, case: str, *, space: str) -> Path:
    """The path of the label map of a case. Raises MisuseError for a name that BIDS does not know."""
    if not is_case_name(case):
        raise MisuseError(f"{case}: is no name of a case in BIDS, which is {SUBJECT_AND_SESSION}")
    return dataset / _folder_of(case) / f"{case}_space-{space}_desc-tumour_dseg.nii.gz"


def beside(label_map: Path, ending: str) -> Path:
    """The path of NAME{ending} beside a label map NAME.nii.gz, such as NAME_preview.png.

    Beside a label map of `label_map_in` it has a name of BIDS' form, also where BIDS has no suffix for what it is.
    """
    found = _OURS.fullmatch(stem(label_map))
    if found is None:
        return label_map.with_name(f"{stem(label_map)}{ending}")
    case, space = found["case"], found["space"]
    word, _, suffix = ending.partition(".")
    regions = {end: region for region, end in UNCERTAINTY_MAPS.items()}
    if not word:
        name = stem(label_map)
    elif word in regions:
        name = f"{case}_space-{space}_label-{regions[word]}_desc-tumour_uncertainty"
    elif word.startswith("_in_"):
        name = f"{case}_space-{Modality(word.removeprefix('_in_')).display}_desc-tumour_dseg"
    else:
        name = f"{case}_space-{space}_desc-tumour{'_probseg' if word == '_probabilities' else word}"
    return label_map.with_name(f"{name}.{suffix}")


def is_on_grid_of_scan(label_map: Path) -> bool:
    """Whether a label map of ours lies on the grid of one scan, beside the one of the case (--in-space)."""
    found = _OURS.fullmatch(stem(label_map))
    return found is not None and found["space"] in _SCANS


def case_of_segmentation(path: Path) -> str | None:
    """The case of a discrete segmentation, whoever made it: sub-01_ses-1 of sub-01_ses-1_desc-manual_dseg.nii.gz; else None."""
    found = _SEGMENTATION.fullmatch(stem(path))
    return None if found is None else found["case"]


def dataset_of(path: Path) -> Path:
    """The folder of the data set that a segmentation or its sidecar lies in; of any other file the folder that it lies in."""
    case = case_of_segmentation(path)
    folder = Path() if case is None else _folder_of(case)
    depth = len(folder.parts)
    return path.parents[depth] if depth and path.parent.parts[-depth:] == folder.parts else path.parent


def _folder_of(case: str) -> Path:
    found = _CASE.match(case)
    assert found is not None
    return Path(found["subject"], found["session"] or "", "anat")
