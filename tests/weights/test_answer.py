"""What is read from the headers of a server's answer, and what is not believed."""

import pytest
import requests

from drunet_cli.weights.download import first_byte_of, length_of, retry_after_s, version_of


def answer(status: int, **headers: str) -> requests.Response:
    """Underscores in the names of headers stand for hyphens."""
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


@pytest.mark.parametrize(
    ("response", "first_byte", "length"),
    [
        (answer(206, Content_Range="bytes 5-9/10"), 5, 10),
        (answer(206, Content_Range="bytes 5-9/*"), 5, None),
        (answer(206, Content_Range="bytes five-9/10"), None, None),
        (answer(206, Content_Length="5"), None, None),  # of the part, not of the file
        (answer(200, Content_Length="10"), None, 10),
        (answer(200, Content_Range="bytes 5-9/10", Content_Length="10"), None, 10),  # a whole file, whatever it says of parts
        (answer(200, Content_Length="ten"), None, None),
    ],
)
def test_a_part_is_told_from_a_whole_file(response: requests.Response, first_byte: int | None, length: int | None) -> None:
    assert (first_byte_of(response), length_of(response)) == (first_byte, length)


@pytest.mark.parametrize(
    ("headers", "version"),
    [({"ETag": '"a"', "Last_Modified": "then"}, '"a"'), ({"ETag": 'W/"a"', "Last_Modified": "then"}, "then"), ({}, None)],
)
def test_a_weak_tag_does_not_stand_for_a_version(headers: dict[str, str], version: str | None) -> None:
    assert version_of(answer(200, **headers)) == version


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("3600", 60), ("Wed, 21 Oct 2026 07:28:00 GMT", 0), ("-1", 0)])
def test_a_server_is_waited_for_a_minute_at_most(value: str, seconds: float) -> None:
    assert retry_after_s(answer(503, Retry_After=value)) == seconds
