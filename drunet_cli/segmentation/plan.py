"""What there is of each case, and what a run will do with it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from drunet_cli.brats import REGIONS, Labels, describe_labels
from drunet_cli.errors import CaseError, DrunetError, MisuseError, OutputError, WeightsError, without_remedy
from drunet_cli.io.atomic import temporaries_of
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning
from drunet_cli.io.naming import NIFTI_SUFFIXES, stem
from drunet_cli.io.nifti import load_volume
from drunet_cli.io.volumes import InputFile, changed_files, check_headers, file_sha256
from drunet_cli.segmentation.outputs import Target
from drunet_cli.segmentation.sidecar import files_beside, is_sidecar, read_sidecar, recorded_rate, sidecar_path, weights_in
from drunet_cli.weights.cache import metadata_of, read_weights_file
from drunet_cli.weights.checkpoint import Metadata, read_metadata
from drunet_cli.weights.registry import (
    BUNDLED,
    PUBLISHED_BN_EPSILON,
    Entry,
    cached_path,
    check_file,
    find_entry,
    is_file,
    is_file_name,
    weights_path,
)

_REMEDY: Final = "give --overwrite to segment the case again"


class State(StrEnum):
    """What of a case is there before it is segmented."""

    NEW = "new"
    COMPLETE = "segmented"
    UNFINISHED = "unfinished"  # a sidecar that describes nothing
    FOREIGN = "foreign file"  # not described by drunet: never replaced unasked


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a label map is to be made with, as far as it may change a voxel.

    weights_sha256: of each file. settings: names and values as in the sidecar; what is not in here may be any.
    """

    weights_sha256: Sequence[str]
    labels: Labels
    settings: Mapping[str, Any]


def state_of(label_map: Path, *, sidecar: bool) -> State:
    """What is there of a case. sidecar: whether one is to be written too."""
    path = sidecar_path(label_map)
    described = is_sidecar(path)
    if os.path.lexists(label_map):
        return State.COMPLETE if described else State.FOREIGN
    if described:
        return State.UNFINISHED
    return State.FOREIGN if sidecar and os.path.lexists(path) else State.NEW


def adopt_sidecar(label_map: Path) -> None:
    """Publish the sidecar of a run that was killed between the label map and it. Nothing where there was none."""
    if (temporary := adoptable_sidecar(label_map)) is not None:
        with suppress(OSError):  # its writer lives, and has just done the same
            sidecar_path(label_map).hardlink_to(temporary)
            temporary.unlink()


def adoptable_sidecar(label_map: Path) -> Path | None:
    """Where the sidecar lies that a run wrote which was killed between the label map and it."""
    path = sidecar_path(label_map)
    if os.path.lexists(path) or not os.path.isfile(label_map):  # noqa: PTH113  # unlike Path.is_file, no name makes it raise
        return None
    for temporary in temporaries_of(path):
        document = read_sidecar(temporary)
        if document is not None and document.get("output_sha256") == _sha256(label_map):
            return temporary
    return None


def adopt_sidecars_in(folder: Path) -> None:
    """The same for every label map in a folder, also those of runs at other cases."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:  # also where there is none yet
        return
    for name in names:
        case, found, _ = name[1:].rpartition(".json.")
        if found and name.startswith(".") and name.endswith(".tmp"):
            for suffix in NIFTI_SUFFIXES:
                with suppress(OutputError):  # of a label map that cannot be read; where it matters it is met again
                    adopt_sidecar(folder / f"{case}{suffix}")


def remove_orphan(label_map: Path) -> None:
    """Remove a sidecar whose label map is gone, and the files that it names. X.nii.gz and X.nii have one: either keeps it."""
    path, name = sidecar_path(label_map), stem(label_map)
    if any(os.path.lexists(path.with_name(f"{name}{suffix}")) for suffix in NIFTI_SUFFIXES):
        return
    document = read_sidecar(path)
    if document is not None:
        for extra, sha256 in files_beside(label_map, document).items():
            with suppress(OSError):  # gone, or not to be read: then it is met where it is in the way
                if file_sha256(extra) == sha256:  # else somebody has changed it
                    extra.unlink()
        path.unlink(missing_ok=True)


def finished_document(label_map: Path, case: Case, making: Making) -> dict[str, Any] | None:
    """The sidecar's object of a label map that is complete, and of these inputs and this making; None where none is there.

    Raises OutputError where there is another, or one that somebody has changed, and CaseError where an input cannot be read.
    """
    if not os.path.lexists(label_map):
        return None
    document = read_sidecar(sidecar_path(label_map))
    if document is None:
        raise undescribed(label_map)
    _check_whole(label_map, document)
    if different := _differences(document, case, making):
        raise OutputError(f"{label_map}: was made {different}; {_REMEDY}")
    return document


def intact_document(label_map: Path) -> dict[str, Any] | None:
    """The sidecar's object of a label map that is as it was written, of whatever making; None for any other."""
    document = read_sidecar(sidecar_path(label_map))
    try:
        return document if document is not None and document.get("output_sha256") == file_sha256(label_map) else None
    except OSError:
        return None


def undescribed(label_map: Path) -> OutputError:
    """What is to be said of a label map without a sidecar."""
    return OutputError(f"{label_map}: exists already, without a sidecar that says what it was made of; {_REMEDY}")


def _check_whole(label_map: Path, document: Mapping[str, Any]) -> None:
    if document.get("output_sha256") == _sha256(label_map):
        return
    try:
        load_volume(label_map)
    except CaseError as error:
        raise OutputError(f"{without_remedy(str(error))}; {_REMEDY}") from error
    raise OutputError(f"{label_map}: has been changed since drunet wrote it; {_REMEDY}")


def _differences(document: Mapping[str, Any], case: Case, making: Making) -> str:
    """In words that follow "was made", empty where there are none."""
    try:
        weights, settings = weights_in(document), document["settings"]
        inputs = {name: InputFile(**entry) for name, entry in document["inputs"].items()}
        if [each["sha256"] for each in weights] != list(making.weights_sha256):
            return "with other weights: " + ", ".join(f"{each['name']}, SHA-256 {each['sha256'][:12]}..." for each in weights)
        if document["labels"] != describe_labels(making.labels):
            return "with other --labels"
        for name, value in making.settings.items():
            if settings.get(name) != value:
                return f"with {name} {settings.get(name)}, now {value}"
        _check_told(document)
    except (KeyError, TypeError, AttributeError):
        return "by another version of drunet, which recorded other things"
    images = {str(modality): path for modality, path in case.images.items()}
    if inputs.keys() != images.keys():
        return "of other images"
    changed = changed_files(inputs, images)
    return f"of another file than {changed[0]} is now" if changed else ""


def _check_told(document: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or AttributeError where the object lacks what is told of a case that is left out."""
    names = [weights["name"] for weights in weights_in(document)]
    words = (document["case"], document["device"], *names)
    numbers = (*(document["volumes_ml"][region] for region in REGIONS), *document["seconds"].values())
    if not (all(isinstance(word, str) for word in words) and all(isinstance(number, int | float) for number in numbers)):
        raise TypeError


def refusal(label_maps: Sequence[Path], *, sidecar: bool) -> str | None:
    """Why outputs that exist stop a run that may neither skip nor replace them, in one line; None where there are none."""
    found = [path for path in label_maps if state_of(path, sidecar=sidecar) is not State.NEW]
    if not found:
        return None
    first = found[0] if os.path.lexists(found[0]) else sidecar_path(found[0])
    others = f", and the outputs of {len(found) - 1} more of {len(label_maps)} cases" if len(found) > 1 else ""
    return f"{first}: exists already{others}; give --skip-existing to leave out what is complete, or --overwrite"


def _sha256(label_map: Path) -> str:
    try:
        return file_sha256(label_map)
    except OSError as error:
        raise OutputError(f"{label_map}: cannot be read: {error.strerror}") from error


LEAVE_OUT: Final = "verify and leave out"
_THREADS: Final = 8  # four headers a case come from file systems that answer slowly and many at once


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """One case. state: what is there of it. would: what would be done, in words.

    warnings: those that are known before its voxels are. error: what it would fail with, though the run would go on.
    """

    case: Case
    state: State
    would: str
    warnings: tuple[CaseWarning, ...] = ()
    error: DrunetError | None = None


def prospects(tasks: Sequence[tuple[Case, Target]], *, skip_existing: bool) -> list[Prospect]:
    """What would become of cases, in their order. Nothing is written."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda task: _prospect(*task, skip_existing=skip_existing), tasks))


def _prospect(case: Case, target: Target, *, skip_existing: bool) -> Prospect:
    state = state_of(target.label_map, sidecar=target.sidecar)
    try:
        if state is State.FOREIGN and adoptable_sidecar(target.label_map) is not None:
            state = State.COMPLETE
        would = _would(case, target, state, skip_existing=skip_existing)
        warnings = () if would == LEAVE_OUT else check_headers(case)
    except DrunetError as error:
        return Prospect(case=case, state=state, would="fail", error=error)
    return Prospect(case=case, state=state, would=would, warnings=warnings)


def _would(case: Case, target: Target, state: State, *, skip_existing: bool) -> str:
    """Raises OutputError for what is in the way of a run that skips, which fails in that case alone."""
    extras = [os.path.lexists(path) for path in target.extra_paths]
    if target.overwrite:
        return "segment" if state in (State.NEW, State.UNFINISHED) else "overwrite"
    if not skip_existing:
        return "refuse" if state is not State.NEW or any(extras) else "segment"
    if state is State.COMPLETE:
        return LEAVE_OUT if all(extras) else "add missing files"
    if state is not State.UNFINISHED:  # whose remains the run would remove
        if os.path.lexists(target.label_map):
            raise undescribed(target.label_map)
        target.check(case.images)
    return "segment"


def missing_weights(names: Iterable[str], *, sampled: bool) -> list[Entry]:
    """Those of the weights, by name or file, that would be downloaded.

    sampled: with dropout at the rates that they record. Raises MisuseError for weights that record none, and WeightsError for
    a file that holds no weights. Of a .safetensors file only the header is read.
    """
    missing = []
    rates: dict[str, float | None] = {}
    for name in names:
        if not is_file_name(name) and name not in BUNDLED and not is_file(cached_path(name)):
            missing.append(entry := find_entry(name))
            rates[name] = entry.dropout
            continue
        metadata = _of_file(Path(name)) if is_file_name(name) else metadata_of(name)[1]
        rates[metadata.name] = metadata.dropout
    if sampled:
        for name, rate in rates.items():
            recorded_rate(name, rate)
    return missing


def _of_file(path: Path) -> Metadata:
    """Raises WeightsError in the words of the run."""
    check_file(path)
    with path.open("rb") as stream:
        is_safetensors = stream.read(9)[8:] == b"{"
    return read_metadata(path) if is_safetensors else read_weights_file(path, bn_epsilon=PUBLISHED_BN_EPSILON).metadata


def check_distinct(names: Iterable[str]) -> None:
    """Raise MisuseError for weights that are given twice, by whatever name: the mean would be the same."""
    seen: dict[str, str] = {}
    for name in names:
        with suppress(WeightsError):  # of a name that cannot be, which is told elsewhere
            file = os.path.realpath(name if is_file_name(name) else weights_path(name))
            if file in seen:
                raise MisuseError(f"--weights {name}: the same file as --weights {seen[file]}; give it once")
            seen[file] = name
