"""Web pages that come where a file was asked for: Google Drive's, before a large file and when its quota is used up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from drunet_cli.errors import one_line

if TYPE_CHECKING:
    from requests import Response

_PAGE_BYTES = 1024 * 1024
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_HTML_OPENINGS = (b"<!doctype html", b"<html")


class WebPage(HTMLParser):
    """A web page that came instead of the file: its text, its title, and where its download form or link leads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = one_line(text)
        self.title = self.target = ""
        self.fields: list[tuple[str, str]] = []
        self._inside = ""
        with suppress(AssertionError):  # Python's answer to a malformed "<![...": what stands before it counts
            self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102
        values = {name: value or "" for name, value in attrs}
        if tag == "title" and not self.title:
            self._inside = "title"
        elif tag == "form" and values.get("id") == "download-form" and values.get("method", "get").lower() == "get":
            self._inside, self.target = "form", values.get("action", "")
        elif tag == "input" and self._inside == "form" and values.get("name"):
            self.fields.append((values["name"], values.get("value", "")))
        elif tag == "a" and not self.target and re.search(r"[?&]confirm=", href := values.get("href", "")):
            self.target = href

    def handle_endtag(self, tag: str) -> None:  # noqa: D102
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:  # noqa: D102
        if self._inside == "title":
            self.title += data

    @property
    def says_quota_exceeded(self) -> bool:
        """Whether Google refuses a file because too many have fetched it."""
        return "quota exceeded" in self.title.lower() or "many users have viewed or downloaded this file recently" in self.text


def read_page(blocks: Iterator[bytes]) -> WebPage:
    """Read a page, of which no more than 1 MiB counts."""
    body = b""
    for block in blocks:
        body += block
        if len(body) >= _PAGE_BYTES:
            break
    return WebPage(body.decode(errors="replace"))


def confirmed_url(page: WebPage, page_url: str) -> str | None:
    """Where the page's form or link leads, if that is the same server or one of Google's, and no less encrypted."""
    try:
        here, there = urlsplit(page_url), urlsplit(urljoin(page_url, page.target))
        host = there.hostname or ""
    except ValueError:
        return None
    trusted = host == here.hostname or f".{host}".endswith((".google.com", ".googleusercontent.com"))
    if not page.target or not trusted or there.scheme not in (here.scheme, "https"):
        return None
    return urlunsplit(there._replace(query=urlencode(parse_qsl(there.query) + page.fields), fragment=""))


def has_html_type(response: Response) -> bool:
    """Whether the server says that it sends a web page."""
    return response.headers.get("Content-Type", "").lower().startswith(_HTML_TYPES)


def is_html(opening: bytes) -> bool:
    """Whether a body that begins so is a web page, whatever the server says."""
    return opening.lstrip().lower().startswith(_HTML_OPENINGS)


def opening_of(blocks: Iterator[bytes]) -> bytes:
    """The first bytes of a body, as many as it takes to tell a web page from a file."""
    opening = b""
    for block in blocks:
        opening += block
        start = opening.lstrip().lower()
        if not any(html.startswith(start[: len(html)]) and len(start) < len(html) for html in _HTML_OPENINGS):
            break
    return opening
