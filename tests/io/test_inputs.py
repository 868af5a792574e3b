"""Is this the same input as before? By its stamp, else by its bytes."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.errors import CaseError
from drunet_cli.io import inputs
from drunet_cli.io.inputs import InputFile, changed_files, file_sha256

CONTENT: Final = b"the voxels"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "flair.nii"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def before(path: Path) -> InputFile:
    return InputFile.of(path, path.stat(), sha256=hashlib.sha256(CONTENT).hexdigest())


def later(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def other_bytes_of_one_size(path: Path) -> None:
    path.write_bytes(CONTENT[::-1])
    later(path)


def one_byte_more(path: Path) -> None:
    path.write_bytes(CONTENT + b"x")
    later(path)


@pytest.mark.parametrize(
    ("change", "is_same", "n_read"),
    [
        (lambda path: None, True, 0),
        (later, True, 1),  # touched: the bytes decide
        (other_bytes_of_one_size, False, 1),
        (one_byte_more, False, 0),
    ],
)
def test_an_input_is_the_same_by_size_and_time_or_else_by_size_and_bytes(
    path: Path,
    before: InputFile,
    change: Callable[[Path], None],
    is_same: bool,
    n_read: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = []

    def read_file(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    change(path)
    monkeypatch.setattr(inputs, "file_sha256", read_file)
    assert before.is_still(path) is is_same
    assert len(read) == n_read
    assert changed_files({"flair": before}, {"flair": path}) == ([] if is_same else [path])


def test_a_copy_elsewhere_is_the_same_input_whatever_its_time(path: Path, before: InputFile, tmp_path: Path) -> None:
    copy = tmp_path / "copy.nii"
    copy.write_bytes(CONTENT)
    assert before.is_still(copy)
    os.utime(copy, ns=(0, before.mtime_ns))
    assert before.is_still(copy)
    copy.write_bytes(CONTENT[::-1])
    os.utime(copy, ns=(0, before.mtime_ns))
    assert not before.is_still(copy)  # another path: time and size do not suffice


def test_an_input_that_is_gone_or_cannot_be_read_is_an_error_that_names_it(path: Path, before: InputFile) -> None:
    path.unlink()
    with pytest.raises(CaseError, match=rf"^{path}: cannot be read: No such file"):
        before.is_still(path)
