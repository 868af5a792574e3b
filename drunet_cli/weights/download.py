"""The bytes of a URL in a local file: all of them, or an error in one sentence."""

from __future__ import annotations

import errno
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from drunet_cli import __version__
from drunet_cli.errors import WeightsError, one_line

if TYPE_CHECKING:
    from requests import Response, Session

ByteProgress: TypeAlias = Callable[[int, int | None], None]  # bytes that have arrived, and in all where that is known
Note: TypeAlias = Callable[[str], None]  # a message for a person, of one line or several

_BLOCK_BYTES: Final = 64 * 1024  # small, as a reset or a time-out loses the block that it cuts short
_PAGE_BYTES: Final = 1024 * 1024  # no more of a web page is read
_OPENING_BYTES: Final = 64  # that tell a web page from a file
_LONGEST_DELAY_S: Final = 30.0
_LONGEST_RETRY_AFTER_S: Final = 60.0
_HTML_TYPES: Final = ("text/html", "application/xhtml+xml")
_HTML_OPENINGS: Final = (b"<!doctype html", b"<html")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# A host that cannot be reached for these reasons cannot be reached a few seconds later either.
_UNREACHABLE: Final = {
    *(errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
    *(errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM),
}


@dataclass(frozen=True)
class Patience:
    """The limits after which a download is given up.

    attempts: in a row without a new byte. A host that has never answered gets one where it cannot be reached, and two where it
    is silent, as behind a firewall. first_delay_s: before the second attempt; delays double, up to 30 s.
    """

    attempts: int = 6
    first_delay_s: float = 1.0
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0


def fetch(
    url: str,
    part: Path,
    *,
    on_progress: ByteProgress,
    on_note: Note,
    patience: Patience = Patience(),
) -> None:
    """Complete `part` with the bytes of `url` (http, https, file), going on after the bytes it holds where the server can.

    on_progress: called with the bytes in the part and the file's length, None where the server does not tell.
    on_note: called with a sentence whenever an attempt has failed and another follows.
    Raises WeightsError, its message one line `URL: reason`, for all that is wrong with the URL, the network or the
    server, and OSError when the part cannot be written. The part stays, for a later call to go on with; PART.origin beside it
    says of which version of which URL it is a part, as another file's bytes must not follow.
    """
    shown = shown_url(url)
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise WeightsError(f"{shown}: not a valid URL") from error
    if scheme == "file":
        _copy(url, part, shown, on_progress)
    elif scheme in ("http", "https"):
        import requests

        with requests.Session() as session:
            _Download(session, url, part, shown, on_progress, patience).complete(on_note)
    else:
        meant = f"; for this file write file://{shown}" if shown.startswith("/") else ""
        raise WeightsError(f"{shown}: not a URL of a kind that can be fetched (http, https, file){meant}")


def shown_url(url: str) -> str:
    """A URL without user and password, which are nobody else's business, for messages and records."""
    return one_line(re.sub(r"//[^/?#]*@", "//", url))


def discard_part(part: Path) -> None:
    """Remove a part that is used, or of no use."""
    part.unlink(missing_ok=True)
    _origin_of(part).unlink(missing_ok=True)


def _origin_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.origin")


def _copy(url: str, part: Path, shown: str, on_progress: ByteProgress) -> None:
    host, path = urlsplit(url)[1:3]
    source = Path(url2pathname(path))
    if host not in ("", "localhost") or not source.is_absolute() or "\0" in str(source):
        raise WeightsError(f"{shown}: not a valid file URL, which is file:// and an absolute path of this machine")
    try:
        reading = source.open("rb")
    except OSError as error:
        raise WeightsError(f"{shown}: {error.strerror}") from error
    with reading, part.open("wb") as writing:
        total = source.stat().st_size
        while block := reading.read(_PAGE_BYTES):
            writing.write(block)
            on_progress(writing.tell(), total)


class _AttemptError(Exception):
    """An attempt failed in a way that another one may mend.

    wait_s: how long the server asks to wait. attempts: how many make sense at a host that has never answered.
    """

    def __init__(self, reason: str, *, wait_s: float = 0.0, attempts: int | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.attempts = attempts


@dataclass
class _Download:
    """A download under way.

    url: changes once, when the page before a large file on Google Drive is confirmed. shown: the URL as messages begin.
    version: an ETag, else the date of the last change, of the file that the part belongs to.
    reached: the furthest byte written; an attempt that does not get beyond it has made no progress.
    whole: whether the next request asks for the whole file, as the part cannot be gone on from.
    """

    session: Session
    url: str
    part: Path
    shown: str
    on_progress: ByteProgress
    patience: Patience
    confirmed: bool = False
    version: str | None = None
    reached: int = 0
    answered: bool = False
    whole: bool = False

    def complete(self, on_note: Note) -> None:
        """Attempt it until the part is complete or patience ends."""
        # "identity", so that bytes and lengths are those of the file; English, so that Google's pages can be told apart.
        headers = {"User-Agent": f"drunet/{__version__}", "Accept-Encoding": "identity", "Accept-Language": "en"}
        self.session.headers.update(headers)
        self.version = self._recorded_version()
        self.whole = self.version is None
        failures = 0
        while True:
            reached = self.reached
            try:
                if self._attempt():
                    return
            except _AttemptError as error:
                failures = 0 if self.reached > reached else failures + 1
                most = self.patience.attempts
                if error.attempts is not None and not self.answered:
                    most = min(most, error.attempts)
                if failures >= most:
                    raise self._refusal(f"{error} ({failures} attempts)" if failures > 1 else str(error)) from error
                delay_s = max(min(self.patience.first_delay_s * 2 ** max(failures - 1, 0), _LONGEST_DELAY_S), error.wait_s)
                on_note(f"Download: {error}; trying again in {delay_s:.0f} s")
                time.sleep(delay_s)

    def _recorded_version(self) -> str | None:
        """The version that an earlier run has left a part of; None where that was another URL, or did not tell its version."""
        try:
            shown, version = _origin_of(self.part).read_text().splitlines()
        except (OSError, ValueError):
            return None
        return version if version and shown == self.shown else None

    def _attempt(self) -> bool:
        """Ask once for the bytes that the part lacks. False: to be asked again at once, elsewhere or for the whole file."""
        size = self.part.stat().st_size if self.part.exists() and not self.whole else 0
        with self._ask(size) as response:
            status, html = response.status_code, _has_html_type(response)
            if status == 416 and size and response.headers.get("Content-Range") == f"bytes */{size}":
                self.on_progress(size, size)
                return True
            start, total = _place_of(response)
            version = _version_of(response)
            goes_on = start == size and not (version and self.version and version != self.version)
            if size and (status == 416 or (status == 206 and (html or not goes_on))):  # of another file, or of a web page
                self.whole = True
                return False
            if status not in (200, 206):
                self._refuse_status(response)
            if start not in (0, size):
                raise _AttemptError("the server sent another part of the file than it was asked for")
            blocks = self._blocks(response)
            # Nothing is written before it is known that this is not a web page.
            opening = b"" if start else _read_some(blocks, _OPENING_BYTES)
            if html or opening.lstrip().lower().startswith(_HTML_OPENINGS):
                self._confirm(_page_of(chain([opening], blocks)), response.url)
                return False
            self.whole, self.version = False, version or (self.version if start else None)
            if start == 0:
                _origin_of(self.part).write_text(f"{self.shown}\n{self.version or ''}\n")
            self._write(chain([opening], blocks), start, total)
            return True

    def _ask(self, size: int) -> Response:
        headers = {}
        if size:
            headers["Range"] = f"bytes={size}-"
            if self.version:
                headers["If-Range"] = self.version
        timeout = (self.patience.connect_timeout_s, self.patience.read_timeout_s)
        with self._reword_errors():
            response = self.session.get(self.url, headers=headers, stream=True, timeout=timeout)
        self.answered = True
        addresses = [urlsplit(hop.url).scheme for hop in (*response.history, response)]
        if urlsplit(self.url).scheme == "https" and set(addresses) != {"https"}:
            response.close()  # no checksum is published that would tell a file changed on its way
            raise self._refusal("the server redirects to an address without encryption")
        return response

    def _write(self, blocks: Iterator[bytes], start: int, total: int | None) -> None:
        size = start
        with self.part.open("ab" if start else "wb") as stream:
            self.on_progress(size, total)
            for block in filter(None, blocks):
                stream.write(block)
                stream.flush()
                size += len(block)
                self.reached = max(self.reached, size)
                self.on_progress(size, total)
        if total is not None and size != total:  # more bytes, too, are mended by the next attempt
            raise _AttemptError(f"the server sent {size} of {total} bytes")

    def _blocks(self, response: Response) -> Iterator[bytes]:
        # Not response.iter_content: its urllib3 decodes, and then drops what came of a block before the connection was cut.
        with self._reword_errors():
            yield from response.raw.stream(_BLOCK_BYTES, decode_content=False)

    def _confirm(self, page: str, page_url: str) -> None:
        """Go on at the address that Google's page before a large file leads to; refuse any other page."""
        url = None if _says_quota_exceeded(page) or self.confirmed else _confirmed_url(page, page_url)
        if url is None:
            raise self._refusal(_complaint_about(page))
        self.url, self.confirmed, self.whole = url, True, self.version is None

    def _refuse_status(self, response: Response) -> None:
        status = response.status_code
        if status < 500 and _has_html_type(response) and _says_quota_exceeded(page := _page_of(self._blocks(response))):
            raise self._refusal(_complaint_about(page))
        reason = one_line(f"the server answered {status} {response.reason or ''}")
        if status in (408, 429) or status >= 500:
            seconds = response.headers.get("Retry-After", "")  # a date is left aside
            raise _AttemptError(reason, wait_s=min(float(seconds), _LONGEST_RETRY_AFTER_S) if seconds.isdecimal() else 0.0)
        raise self._refusal(reason)

    def _refusal(self, reason: str) -> WeightsError:
        return WeightsError(f"{self.shown}: {reason}")

    @contextmanager
    def _reword_errors(self) -> Iterator[None]:
        """Put the errors of requests and urllib3 into words: _AttemptError where a retry may help, else WeightsError."""
        import ssl

        import requests
        import urllib3.exceptions

        host = urlsplit(self.url).hostname or "the server"
        try:
            yield
        except requests.ConnectTimeout as error:
            raise _AttemptError(f"could not connect to {host}: no answer", attempts=2) from error
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise _AttemptError("the server is silent") from error
        except requests.exceptions.ConnectionError as error:
            cause = _system_error(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise self._refusal(f"the TLS certificate of {host} cannot be trusted: {cause.verify_message}") from error
            peer = "the proxy" if isinstance(error, requests.exceptions.ProxyError) else host
            reason = "it does not speak HTTP" if cause is None else cause.strerror or str(cause)
            hopeless = isinstance(cause, socket.gaierror) or (cause is not None and cause.errno in _UNREACHABLE)
            raise _AttemptError(f"could not connect to {peer}: {reason}", attempts=1 if hopeless else None) from error
        except urllib3.exceptions.LocationValueError as error:
            raise self._refusal("the name of the host is not valid") from error
        except urllib3.exceptions.HTTPError as error:
            raise _AttemptError("the connection was cut") from error
        except requests.TooManyRedirects as error:
            raise self._refusal("the server redirects without end") from error
        except requests.RequestException as error:  # their texts repeat the URL with user and password
            raise self._refusal("the URL, one that it redirects to, or that of the proxy is not valid") from error
        except OSError as error:  # requests raises it, bare, for a REQUESTS_CA_BUNDLE that does not exist
            raise self._refusal(one_line(str(error))) from error


def _system_error(error: BaseException) -> OSError | None:
    """Find the error of the operating system or the TLS library inside the exceptions that are wrapped around it."""
    inner = error.__cause__ or error.__context__
    return inner if inner is None or isinstance(inner, OSError) else _system_error(inner)


def _place_of(response: Response) -> tuple[int | None, int | None]:
    """The offset of the body in the file, and the length of the whole file; None where the server does not tell."""
    if response.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        start, length = (int(found[1]), found[2]) if found else (None, "")
    else:
        start, length = 0, response.headers.get("Content-Length", "")
    return start, int(length) if length.isdecimal() else None


def _version_of(response: Response) -> str | None:
    """The value for If-Range: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if tag.startswith("W/") else tag


def _has_html_type(response: Response) -> bool:
    return response.headers.get("Content-Type", "").lower().startswith(_HTML_TYPES)


def _read_some(blocks: Iterator[bytes], n_bytes: int) -> bytes:
    """Read whole blocks of a body, until this many bytes are there."""
    body = b""
    while len(body) < n_bytes and (block := next(blocks, None)) is not None:
        body += block
    return body


def _page_of(blocks: Iterator[bytes]) -> str:
    return _read_some(blocks, _PAGE_BYTES).decode(errors="replace")


def _says_quota_exceeded(page: str) -> bool:
    """Whether Google refuses a file because too many have fetched it."""
    return "quota exceeded" in page.lower() or "many users have viewed or downloaded this file recently" in one_line(page)


def _complaint_about(page: str) -> str:
    if _says_quota_exceeded(page):
        return "Google's download quota for this file is used up: try again in 24 hours, or import it by hand"
    found = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    title = one_line(unescape(found[1]))[:80] if found else ""
    return "the server sent a web page instead of the file" + (f': "{title}"' if title else "")


def _confirmed_url(page: str, page_url: str) -> str | None:
    """The URL of the page's download form, if its server is the same or Google's, and no less encrypted."""
    for form in re.finditer(r"<form\b([^>]*)>(.*?)</form>", page, re.IGNORECASE | re.DOTALL):
        attributes = _attributes(form[1])
        if attributes.get("id") == "download-form" and attributes.get("method", "get").lower() == "get":
            break
    else:
        return None
    inputs = [_attributes(words) for words in re.findall(r"<input\b([^>]*)>", form[2], re.IGNORECASE)]
    fields = [(each["name"], each.get("value", "")) for each in inputs if each.get("name")]
    try:
        here, there = urlsplit(page_url), urlsplit(urljoin(page_url, attributes.get("action", "")))
        host = there.hostname or ""
    except ValueError:
        return None
    trusted = host == here.hostname or f".{host}".endswith((".google.com", ".googleusercontent.com"))
    if not attributes.get("action") or not trusted or there.scheme not in (here.scheme, "https"):
        return None
    return urlunsplit(there._replace(query=urlencode(parse_qsl(there.query) + fields), fragment=""))


def _attributes(words: str) -> dict[str, str]:
    """The attributes of an HTML tag."""
    return {name.lower(): unescape(value) for name, value in re.findall(r'([\w-]+)\s*=\s*"([^"]*)"', words)}
