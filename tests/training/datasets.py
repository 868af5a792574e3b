"""Datasets of slices of one small case, and what `find_sources` says of them."""

import shutil
from pathlib import Path

import pytest

from drunet_cli.errors import CaseError
from drunet_cli.training.cases import LabelledSlices, Sources, TrainingCase, find_sources, read_labelled_slices
from tests.conversion.small_cases import NAME, convert, small_case


def dataset(tmp_path: Path, *, skip_blank: bool = False, described: bool = True, segmented: bool = True) -> Path:
    """A dataset of slices of one case; not described as if its cases folder had been lost."""
    root = tmp_path / "png"
    convert(small_case(tmp_path / "nifti", segmented=segmented), root, skip_blank=skip_blank)
    if not described:
        shutil.rmtree(root / "cases")
    return root


def names_of(sources: Sources) -> list[str]:
    return [case.name for case in sources.cases]


def only_case(path: Path) -> TrainingCase:
    sources = find_sources([path])
    assert not sources.refused
    [case] = sources.cases
    return case


def refusal(sources: Sources, name: str = NAME) -> str:
    """The one reason for which a case cannot be used."""
    assert not sources.cases
    [broken] = sources.refused
    assert broken.name == name
    return str(broken.error)


def read(path: Path) -> LabelledSlices:
    return read_labelled_slices(only_case(path))


def assert_unreadable(path: Path, *, match: str) -> None:
    with pytest.raises(CaseError, match=match) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
