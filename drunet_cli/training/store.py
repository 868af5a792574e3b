"""The store: cases as normalised slices on the disk, read and checked once, memory-mapped by every run."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from drunet_cli.brats import CHANNELS, TUMOUR_CLASSES, ClassMap
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.atomic import check_writable, publish
from drunet_cli.io.geometry import FRAME, box_of
from drunet_cli.io.inputs import Stamp, is_same_input, read_status, sha256_of
from drunet_cli.io.intensities import SliceStack
from drunet_cli.training.cases import MOST_SLICES, LabelledSlices, TrainingCase, read_labelled_slices

_SCHEMAS: Final = "drunet.training-slices/"
# The number rises also when the same images come to give other pixels: otherwise a store would keep the old ones.
SCHEMA: Final = f"{_SCHEMAS}1"
_SUFFIX: Final = ".safetensors"
_HEAD_BYTES: Final = 4096  # in which the schema stands
_METADATA_KEY: Final = "drunet"
_TENSOR: Final = "slices"
_COLUMNS: Final = (
    *("brain", "ncr", "ed", "et"),
    *("brain_x_start", "brain_x_stop", "brain_y_start", "brain_y_stop"),
    *("tumour_x_start", "tumour_x_stop", "tumour_y_start", "tumour_y_stop"),
)
_N_COUNTS: Final = 1 + len(TUMOUR_CLASSES)
_N_CHANNELS: Final = len(CHANNELS) + 1

_Integers = npt.NDArray[np.int64]
_Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class StoredInput:
    """The files of one role, such as FLAIR or all slices, when they were read. Holds no path.

    name: of the file, or the role of several files. n_bytes: of all files together. stamp: SHA-256 over paths, sizes and times
    of change; where it is the same, the files need not be read to know that they have not changed. sha256: of the file, or
    over names and contents of several files.
    """

    name: str
    n_bytes: int
    stamp: str
    sha256: str


class StoredCase:
    """A case of a store, memory-mapped, for any number of threads.

    n_slices: Z. inputs: the files that the case was made from, by role.
    counts: [Z, 4], number of pixels of brain (any modality above 0), NCR, ED and ET.
    brain_boxes, tumour_boxes: [Z, 4], x start, x stop, y start, y stop on the frame; 0 where a slice has none.
    """

    def __init__(self, path: Path) -> None:
        """Raises CaseError when the file is missing, damaged, of another version, or no file of a store."""
        # numpy.memmap reads a window of 144 x 176 in 12 us, safetensors in 20 us. But numpy keeps a file descriptor for each
        # case, and the 1251 cases of BraTS 2021 are more than the 1024 descriptors that most systems allow.
        metadata, self._pixels = _opened(path)
        try:
            document = json.loads(metadata)
            if document["schema"] != SCHEMA:
                raise CaseError(f"{path}: is of schema {document['schema']!r}, not {SCHEMA!r}; prepare the case again")
            self.name = str(document["case"])
            self.inputs = {str(role): StoredInput(**fields) for role, fields in document["inputs"].items()}
            self.n_slices, start = _checked_place(document, self._pixels)
            self._start = start
            rows = _checked_rows(document, self._pixels)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise CaseError(f"{path}: is damaged, or no case of drunet's store; prepare the case again") from error
        table = np.zeros((self.n_slices, len(_COLUMNS)), dtype=np.int64)
        table[start[0] : start[0] + len(rows)] = rows
        table.setflags(write=False)
        self.counts, self.brain_boxes, self.tumour_boxes = np.split(table, [_N_COUNTS, _N_COUNTS + 4], axis=1)

    def window(self, z: int, x: int, y: int, shape: tuple[int, int]) -> _Pixels:
        """Read [*shape, 5]: FLAIR, T1ce, T1, T2 and class index of the pixels of slice z from (x, y) on.

        Pixels that are not stored, or lie outside the frame, are 0.
        """
        assert 0 <= z < self.n_slices
        pixels = np.zeros((*shape, _N_CHANNELS), dtype=np.uint8)
        first_z, *starts = self._start
        n_z, *sizes, _ = self._pixels.get_shape()
        (x_stored, x_shown), (y_stored, y_shown) = (
            _overlap(wanted - start, length, size)
            for wanted, length, start, size in zip((x, y), shape, starts, sizes, strict=True)
        )
        row = z - first_z
        if 0 <= row < n_z and x_stored.start < x_stored.stop and y_stored.start < y_stored.stop:
            pixels[x_shown, y_shown] = self._pixels[row : row + 1, x_stored, y_stored][0]
        return pixels

    def slices(self) -> SliceStack:
        """Read all slices, [Z, 240, 240, 4], as the network takes them."""
        return self._whole(slice(0, len(CHANNELS)))

    def classes(self) -> ClassMap:
        """Read all class indices, [Z, 240, 240]."""
        return self._whole(slice(len(CHANNELS), _N_CHANNELS))[..., 0]

    def summary(self) -> "CaseSummary":
        """Count slices, and slices with tumour."""
        n_tumour_slices = int(np.count_nonzero(self.tumour_boxes.any(axis=1)))
        return CaseSummary(name=self.name, n_slices=self.n_slices, n_tumour_slices=n_tumour_slices, reused=True)

    def _whole(self, channels: slice) -> _Pixels:
        stored = self._pixels[:][..., channels]
        whole = np.zeros((self.n_slices, FRAME, FRAME, stored.shape[3]), dtype=np.uint8)
        z, x, y = (slice(start, start + size) for start, size in zip(self._start, stored.shape[:3], strict=True))
        whole[z, x, y] = stored
        return whole


def open_store(folder: Path, names: Iterable[str]) -> list["StoredCase"]:
    """Open cases in the order of the names given; no pixel is read.

    Raises CaseError for a file that is missing, damaged, or no file of a store.
    """
    cases = []
    for name in names:
        case = StoredCase(path := path_in_store(name, folder))
        if case.name != name:
            raise CaseError(f"{path}: holds the case {case.name}, not {name}; remove it, and prepare the case again")
        cases.append(case)
    return cases


@dataclass(frozen=True, kw_only=True)
class StoreTask:
    """One case to put into a store. write: False to check everything and leave the store as it is.

    expected: SHA-256 that the files of the case must have, by role; None for any.
    """

    case: TrainingCase
    folder: Path
    write: bool = True
    expected: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class CaseSummary:
    """A case that is in the store, or would be without a dry run. reused: it was there before. warnings: about its images."""

    name: str
    n_slices: int
    n_tumour_slices: int
    reused: bool = False
    warnings: tuple[str, ...] = ()


def store_case(task: StoreTask) -> CaseSummary:
    """Put a case into the store, unless the store has it already, made from the same files.

    Raises CaseError for a case that cannot be learnt from, OutputError for a foreign file in its place, and for a folder that
    cannot be written.
    """
    path = path_in_store(task.case.name, task.folder)
    stamps = _stamps(task.case.inputs)
    stored = _find_stored(path, task.case, stamps)
    if stored is not None:
        _check_expected(task, stored.inputs)
        return stored.summary()
    check_writable(path, overwrite=True)
    read = read_labelled_slices(task.case)
    inputs = {
        role: StoredInput(paths[0].name if len(paths) == 1 else role, *stamps[role], _sha256(paths))
        for role, paths in task.case.inputs.items()
    }
    if _stamps(task.case.inputs) != stamps:
        raise CaseError(f"{task.case.place}: the files of {task.case.name} have changed while they were read; start again")
    _check_expected(task, inputs)
    content = encode_case(task.case.name, read, inputs)
    if task.write and _find_stored(path, task.case, stamps) is None:  # another run may have been faster, and may be reading it
        publish(path, content, overwrite=True)
    return CaseSummary(
        name=task.case.name,
        n_slices=len(read.classes),
        n_tumour_slices=int(np.count_nonzero(read.classes.any(axis=(1, 2)))),
        warnings=read.warnings,
    )


def _check_expected(task: StoreTask, inputs: Mapping[str, StoredInput]) -> None:
    if task.expected is not None and {role: found.sha256 for role, found in inputs.items()} != task.expected:
        raise CaseError(
            f"{task.case.place}: {task.case.name}: its files are not those that were trained on until now; begin a new run"
        )


def _find_stored(path: Path, case: TrainingCase, stamps: Mapping[str, tuple[int, str]]) -> StoredCase | None:
    """Open the case if the store has it, made from the same files. Raises OutputError for a foreign file in its place."""
    try:
        stored = StoredCase(path)
    except CaseError as error:
        if os.path.lexists(path) and not _is_ours(path):
            raise OutputError(f"{path}: is no case of drunet's store; remove it, or name another folder") from error
        return None
    inputs = case.inputs
    if stored.name != case.name or stored.inputs.keys() != inputs.keys():
        return None
    for role, before in stored.inputs.items():
        earlier, now = Stamp(before.n_bytes, before.stamp), Stamp(*stamps[role])
        if not is_same_input(earlier, before.sha256, now=now, read_sha256=partial(_sha256, inputs[role])):
            return None
    return stored


def _is_ours(path: Path) -> bool:
    """Whether a file comes from a store, of any version and however damaged; or is empty, as after a loss of power."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    return _SCHEMAS.encode() in head or not head.strip(b"\0")


def _stamps(inputs: Mapping[str, Sequence[Path]]) -> dict[str, tuple[int, str]]:
    """Return size and stamp of the files of each role. Raises CaseError for a file that is not there."""
    return {role: _stamp_of(paths) for role, paths in inputs.items()}


def _stamp_of(paths: Sequence[Path]) -> tuple[int, str]:
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    files = [(folders[path.parent], path.name, (status := read_status(path)).st_size, status.st_mtime_ns) for path in paths]
    return sum(size for _, _, size, _ in files), _digest(files)


def _sha256(paths: Sequence[Path]) -> str:
    contents = [(path.parent.name, path.name, sha256_of(path)) for path in paths]
    return contents[0][-1] if len(contents) == 1 else _digest(contents)


def _digest(values: Any) -> str:
    """Return the SHA-256 over values that JSON can hold."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def path_in_store(name: str, folder: Path) -> Path:
    """Return the file of a case."""
    return folder / f"{name}{_SUFFIX}"


def encode_case(name: str, read: LabelledSlices, inputs: Mapping[str, StoredInput]) -> bytes:
    """Return the content of the file of a case, cropped to the box of brain and labels."""
    brain, tumour = np.asarray(read.images.any(axis=3)), np.asarray(read.classes > 0)
    box = box_of(brain | tumour)
    assert box is not None, "a case without brain has been refused"
    crop = np.concatenate([read.images[box], read.classes[box][..., np.newaxis]], axis=3)
    counts = [np.count_nonzero(mask, axis=(1, 2)) for mask in (brain, *(read.classes == index for index in TUMOUR_CLASSES))]
    rows = np.column_stack([*counts, _boxes(brain), _boxes(tumour)])[box[0]]
    document = {
        "schema": SCHEMA,  # first, so that a damaged file can still be known
        "case": name,
        "frame": read.classes.shape,
        "start": [part.start for part in box],
        "inputs": {role: asdict(file) for role, file in inputs.items()},
        "columns": _COLUMNS,
        "rows": rows.tolist(),
    }
    # One key of metadata, because safetensors writes several keys in no fixed order.
    return safetensors.numpy.save({_TENSOR: crop}, {_METADATA_KEY: json.dumps(document)})


def _boxes(mask: npt.NDArray[np.bool_]) -> _Integers:
    """Return the smallest box of each slice of a mask [Z, 240, 240], as [Z, 4] like StoredCase.brain_boxes."""
    sides = []
    for axis in (2, 1):
        hit = np.asarray(mask.any(axis=axis))
        stop = hit.shape[1] - np.argmax(hit[:, ::-1], axis=1)
        sides += [np.argmax(hit, axis=1), np.where(hit.any(axis=1), stop, 0)]
    return np.column_stack(sides).astype(np.int64)


def _opened(path: Path) -> tuple[str, Any]:
    """Return the metadata as text, and the tensor, of which nothing is read yet."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe need never end
            raise CaseError(f"{path}: is not a regular file; remove it")
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = (file.metadata() or {}).get(_METADATA_KEY)
            pixels = file.get_slice(_TENSOR) if _TENSOR in file.keys() else None  # noqa: SIM118  # not a dict
    except FileNotFoundError as error:
        raise CaseError(f"{path}: is missing from the store; prepare the case first") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise CaseError(f"{path}: cannot be read as a case of the store: {error}; prepare the case again") from error
    if metadata is None or pixels is None:
        raise CaseError(f"{path}: is no case of drunet's store; remove it, or name another folder")
    return metadata, pixels


def _checked_place(document: Mapping[str, Any], pixels: Any) -> tuple[int, tuple[int, int, int]]:
    """Return Z, and where the stored box begins on the frame. Raises ValueError."""
    frame, start, shape = document["frame"], document["start"], pixels.get_shape()
    if pixels.get_dtype() != "U8" or len(shape) != 4 or shape[3] != _N_CHANNELS or frame[1:] != [FRAME, FRAME]:
        raise ValueError
    z, x, y = start
    if not all(type(n) is int for n in (*frame, z, x, y)) or frame[0] > MOST_SLICES:
        raise ValueError
    if not all(0 <= first <= first + size <= end for first, size, end in zip(start, shape[:3], frame, strict=True)):
        raise ValueError
    return frame[0], (z, x, y)


def _checked_rows(document: Mapping[str, Any], pixels: Any) -> _Integers:
    """Return the table [Z of the stored box, columns]. Raises ValueError."""
    rows = np.array(document["rows"])
    if document["columns"] != list(_COLUMNS) or rows.shape != (pixels.get_shape()[0], len(_COLUMNS)) or rows.dtype.kind != "i":
        raise ValueError
    starts, stops = rows[:, _N_COUNTS::2], rows[:, _N_COUNTS + 1 :: 2]
    if rows.min() < 0 or rows[:, :_N_COUNTS].max() > FRAME * FRAME or (starts > stops).any() or stops.max() > FRAME:
        raise ValueError
    return rows


def _overlap(first: int, length: int, size: int) -> tuple[slice, slice]:
    """Return which of `length` indices from `first` on lie within 0 to size; and their places among the wanted ones."""
    begin, end = max(first, 0), min(first + length, size)
    return slice(begin, end), slice(begin - first, end - first)
