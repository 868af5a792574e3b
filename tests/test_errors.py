"""What messages are made of."""

import traceback

import pytest

from drunet_cli.errors import CaseError, join_some, one_line, plural, without_remedy


def test_a_message_is_one_line_whatever_a_file_is_called() -> None:
    assert str(CaseError("a\nb\x1b[2J:  is \u2028 damaged\t")) == one_line("a b [2J: is damaged") == "a b [2J: is damaged"


@pytest.mark.parametrize(
    ("items", "words"), [([], ""), ([3], "3"), ([1, 2, 3], "1, 2, 3"), ([1, 2, 3, 4], "1, 2, 3 and 1 more")]
)
def test_a_list_names_the_first_and_counts_the_others(items: list[int], words: str) -> None:
    assert join_some(items, most=3) == words


def test_a_number_has_its_noun() -> None:
    assert [plural(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("a.nii: is empty; copy it again", "a.nii: is empty"),
        ("a.nii: is empty", "a.nii: is empty"),
        ("a; b: is c; do d", "a; b: is c"),
    ],
)
def test_a_message_without_its_remedy_says_what_was_wrong(message: str, words: str) -> None:
    assert without_remedy(message) == words


def test_details_are_shown_below_a_traceback() -> None:
    """For programs, which do not see what the command line prints below the message."""
    error = CaseError("a.nii: is empty", details=("one", "two"))
    assert "".join(traceback.format_exception(error)).endswith("a.nii: is empty\none\ntwo\n")
