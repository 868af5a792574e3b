"""The description of a case: it comes back as it was written, and a damaged one is one line that names the file."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import drunet_cli
from drunet_cli.conversion.dataset import SCHEMA, Description, SliceRow, read_description
from drunet_cli.errors import CaseError
from tests.conversion.small_cases import BRATS_AFFINE, NAME, brain_in, convert, images_in, saved_case, small_case

KEYS: Final = (
    *("schema", "drunet", "case", "inputs", "skip_blank", "labels", "shape", "affine", "x", "y", "columns", "rows", "warnings"),
    *(f"{axis}.{field}" for axis in "xy" for field in ("size", "spacing_mm", "start_mm", "brain_mm")),
    *("inputs.t1", "inputs.t1.sha256", "rows.2", "rows.2.0", "columns.0", "shape.1", "affine.1", "affine.1.1"),
)
# What JSON can hold in the place of anything; the numbers are too large for a float, and for an integer of numpy.
STRANGE: Final[dict[str, str]] = {
    "null": "null",
    "text": '"text"',
    "a list": "[]",
    "an object": "{}",
    "NaN": "NaN",
    "1e999": "1e999",
    "10**400": "1" + "0" * 400,
    "deep": "[" * 100_000 + "]" * 100_000,
}
PLACEHOLDER: Final = "here it stands"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Description]:
    """A description as it was written, and as it was meant."""
    folder = tmp_path_factory.mktemp("described")
    converted = convert(small_case(folder), folder / "out")
    return converted.path, converted.description


def with_changed(
    described: tuple[Path, Description], folder: Path, key: str, change: Callable[[Any, str | int], None]
) -> tuple[Path, Any]:
    """Where a copy may go, and what it holds when `change` was done to the container and last word of a key such as x.size."""
    document = json.loads(described[0].read_bytes())
    container: Any = document
    *outer, last = (int(word) if word.isdecimal() else word for word in key.split("."))
    for word in outer:
        container = container[word]
    change(container, last)
    return folder / f"{NAME}.json", document


def assert_damaged(path: Path) -> None:
    with pytest.raises(CaseError) as caught:
        read_description(path)
    assert str(caught.value) == f"{path}: is damaged, or no description of a case by drunet"


def test_a_description_comes_back_as_it_was_written(described: tuple[Path, Description]) -> None:
    path, description = described
    assert path.read_bytes() == description.encoded()
    assert read_description(path) == description


@pytest.mark.parametrize("skip_blank", [False, True])
@pytest.mark.parametrize("segmented", [False, True])
def test_every_kind_of_description_comes_back(tmp_path: Path, segmented: bool, skip_blank: bool) -> None:
    converted = convert(small_case(tmp_path, segmented=segmented), tmp_path / "out", skip_blank=skip_blank)
    description = read_description(converted.path)
    assert description == converted.description
    assert description.has_masks is segmented
    assert description.skip_blank is skip_blank


def test_the_affine_comes_back_to_the_last_bit(described: tuple[Path, Description], tmp_path: Path) -> None:
    affine = BRATS_AFFINE + np.random.default_rng(6).normal(size=(4, 4)) / 30
    path = tmp_path / f"{NAME}.json"
    path.write_bytes(replace(described[1], affine=tuple(tuple(row) for row in affine.tolist())).encoded())
    np.testing.assert_array_equal(read_description(path).affine_array(), affine)


@pytest.mark.parametrize("name", ["p 1", "Müller", 'a"b\\c', "caf\udce9", "p\n1", "病例"])
def test_any_file_name_comes_back(described: tuple[Path, Description], tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{NAME}.json"
    path.write_bytes(replace(described[1], case=name).encoded())
    assert read_description(path).case == name


def test_a_description_is_json_with_a_line_for_every_slice(described: tuple[Path, Description]) -> None:
    path, description = described
    text = path.read_text()
    document = json.loads(text)
    assert document["schema"] == SCHEMA
    assert document["drunet"] == drunet_cli.__version__
    assert [dict(zip(document["columns"], row, strict=True)) for row in document["rows"]] == [
        {field: getattr(row, field) for field in SliceRow.__dataclass_fields__} for row in description.rows
    ]
    assert all(f"    {json.dumps(row)}" in text for row in document["rows"])
    assert text.endswith("}\n")


def test_inputs_are_told_by_their_content(described: tuple[Path, Description]) -> None:
    inputs = described[1].inputs
    assert list(inputs) == ["flair", "t1ce", "t1", "t2", "seg"]
    for file in inputs.values():
        stamp = Path(file.path).stat()
        assert (file.n_bytes, file.mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    assert len({file.sha256 for file in inputs.values()}) == 5


@pytest.mark.parametrize(
    ("row", "blank"),
    [
        (SliceRow(0, 0, 0), True),
        (SliceRow(0, 7, 1), False),
        (SliceRow(0, 7, 0, 7, 0, 0, 0), True),
        (SliceRow(0, 7, 0, 7, 1, 0, 0), False),
        (SliceRow(0, 7, 0, 7, 0, 1, 0), False),
        (SliceRow(0, 7, 0, 7, 0, 0, 1), False),
    ],
)
def test_a_blank_slice_has_neither_brain_nor_label(row: SliceRow, blank: bool) -> None:
    assert row.is_blank is blank


# --- what is refused


def test_an_absent_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"p1\.json: cannot be read: No such file or directory"):
        read_description(tmp_path / "p1.json")


def test_a_folder_is_no_description(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="cannot be read: Is a directory"):
        read_description(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\xff\xfe\x00", b"{", b"{}", b"[]", b"3", b"null", b'"x"', b"[" * 10**6])
def test_what_is_no_description_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"{NAME}.json"
    path.write_bytes(content)
    assert_damaged(path)


def test_a_description_that_was_cut_anywhere_is_refused(described: tuple[Path, Description], tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.json"
    content = described[0].read_bytes()
    for end in range(0, len(content) - 2, 41):
        path.write_bytes(content[:end])
        assert_damaged(path)


def test_a_later_schema_is_named_with_the_one_that_is_read(described: tuple[Path, Description], tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.json"
    path.write_bytes(described[0].read_bytes().replace(SCHEMA.encode(), b"drunet.slices/2"))
    with pytest.raises(CaseError, match=r"p1\.json: is of schema 'drunet.slices/2'; this version reads 'drunet.slices/1'"):
        read_description(path)


@pytest.mark.parametrize("key", [key for key in KEYS if key != "drunet" and not key.startswith("inputs.t1")])
def test_a_description_that_lacks_something_is_refused(described: tuple[Path, Description], tmp_path: Path, key: str) -> None:
    path, document = with_changed(described, tmp_path, key, lambda container, last: container.pop(last))
    path.write_text(json.dumps(document))
    if key == "rows.2":  # a slice fewer is another case, not a damaged one
        assert len(read_description(path).rows) == 4
    else:
        assert_damaged(path)


@pytest.mark.parametrize(
    ("key", "what"),
    list(itertools.product(KEYS, STRANGE)),
)
def test_whatever_stands_in_a_description_there_is_no_other_error(
    described: tuple[Path, Description], tmp_path: Path, key: str, what: str
) -> None:
    def replaced(container: Any, last: str | int) -> None:
        container[last] = PLACEHOLDER

    path, document = with_changed(described, tmp_path, key, replaced)
    path.write_text(json.dumps(document).replace(json.dumps(PLACEHOLDER), STRANGE[what]))
    try:
        description = read_description(path)
    except CaseError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017  # either is right
        return
    geometry = description.geometry()  # what was let pass can be used
    assert geometry.classes(np.zeros((1, 240, 240), dtype=np.uint8)).shape == (1, *description.shape[:2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["affine.0.0", "affine.3.3", "x.start_mm", "y.start_mm", "x.spacing_mm"])
def test_a_geometry_that_is_not_finite_is_refused(
    described: tuple[Path, Description], tmp_path: Path, key: str, value: float
) -> None:
    path, document = with_changed(described, tmp_path, key, lambda container, last: container.__setitem__(last, value))
    path.write_text(json.dumps(document))
    assert_damaged(path)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_an_axis_that_was_resampled_is_refused(described: tuple[Path, Description], tmp_path: Path, axis: str) -> None:
    path, document = with_changed(
        described, tmp_path, f"{axis}.spacing_mm", lambda container, last: container.__setitem__(last, 0.5)
    )
    path.write_text(json.dumps(document))
    assert_damaged(path)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_an_axis_of_another_size_than_the_volume_is_refused(
    described: tuple[Path, Description], tmp_path: Path, axis: str
) -> None:
    # Else a label map of that size would be written under the reference's affine.
    path, document = with_changed(described, tmp_path, f"{axis}.size", lambda container, last: container.__setitem__(last, 100))
    path.write_text(json.dumps(document))
    assert_damaged(path)


def test_a_description_of_many_slices_is_read_whole(tmp_path: Path) -> None:
    brain = brain_in((20, 24, 400))
    converted = convert(saved_case(tmp_path, images_in(brain), None), tmp_path / "out")
    assert len(read_description(converted.path).rows) == 400
