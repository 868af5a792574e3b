"""What the headers of a server's answer say: which part of the file it is, of which version, how long, when to ask again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import Response

_LONGEST_RETRY_AFTER_S = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def first_byte_of(response: Response) -> int | None:
    """Where in the file the answer begins; None for one that is no part of it, or does not tell."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return int(found[1]) if found and response.status_code == 206 else None


def length_of(response: Response) -> int | None:
    """Bytes of the whole file, as far as the server tells."""
    if response.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        length = found[2] if found else ""
    else:
        length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def version_of(response: Response) -> str | None:
    """What If-Range takes: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if tag.startswith("W/") else tag


def retry_after_s(response: Response) -> float:
    """How long the server asks to wait, a minute at most; 0 where it names a date."""
    seconds = response.headers.get("Retry-After", "")
    return min(float(seconds), _LONGEST_RETRY_AFTER_S) if seconds.isdecimal() else 0.0
