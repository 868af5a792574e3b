"""The bytes of a URL in a local file: all of them, or an error in one sentence."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
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

_ATTEMPTS: Final = 6  # in a row without a new byte
_ATTEMPTS_UNANSWERED: Final = 2  # at a host that has never answered: it is not there, or a firewall is before it
_FIRST_DELAY_S: Final = 1.0  # before the second attempt; doubles from one to the next
_TIMEOUTS_S: Final = (15.0, 60.0)  # to connect, and between two answers
_BLOCK_BYTES: Final = 64 * 1024  # small, as a reset or a time-out loses the block that it cuts short
_PAGE_BYTES: Final = 1024 * 1024  # no more of a web page is read
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def fetch(url: str, part: Path, *, on_progress: ByteProgress, on_note: Note) -> None:
    """Complete `part` with the bytes of `url` (http, https, file), going on after the bytes it holds where the server can.

    on_progress: called with the bytes in the part and the file's length, None where the server does not tell.
    on_note: called with a sentence whenever an attempt has failed and another follows.
    Raises WeightsError, its message one line `URL: reason`, for all that is wrong with the URL, the network or the
    server, and OSError when the part cannot be written. The part stays, for a later call to go on with; PART.origin beside it
    says of which version of which URL it is a part, as another file's bytes must not follow.
    """
    check_url(url)
    shown = shown_url(url)
    if urlsplit(url).scheme == "file":
        _copy(url, part, shown, on_progress)
    else:
        import requests

        with requests.Session() as session:
            _Download(session, url, part, shown, on_progress).complete(on_note)


def check_url(url: str) -> None:
    """Raise WeightsError for what is no URL, or of a kind that cannot be fetched."""
    shown = shown_url(url)
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise WeightsError(f"{shown}: not a valid URL") from error
    if scheme not in ("http", "https", "file"):
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
    _origin_of(part).unlink(missing_ok=True)  # of another URL, whose bytes must not follow
    with reading, part.open("wb") as writing:
        total = source.stat().st_size
        while block := reading.read(_PAGE_BYTES):
            writing.write(block)
            on_progress(writing.tell(), total)


class _AttemptError(Exception):
    """An attempt failed in a way that another one may mend."""


@dataclass
class _Download:
    """A download under way.

    url: changes once, when the page before a large file on Google Drive is confirmed. shown: the URL as messages begin.
    answered: whether the host has answered at all. furthest: the most bytes that the part has had; an attempt that does not
    get beyond them has made no progress.
    """

    session: Session
    url: str
    part: Path
    shown: str
    on_progress: ByteProgress
    confirmed: bool = False
    answered: bool = False
    furthest: int = 0

    def complete(self, on_note: Note) -> None:
        """Attempt it until the part is complete, or too many attempts in a row have brought nothing."""
        # "identity", so that bytes and lengths are those of the file; English, so that Google's pages can be told apart.
        headers = {"User-Agent": f"drunet/{__version__}", "Accept-Encoding": "identity", "Accept-Language": "en"}
        self.session.headers.update(headers)
        failures = 0
        while True:
            furthest = self.furthest
            try:
                if self._attempt():
                    return
            except _AttemptError as error:
                failures = 0 if self.furthest > furthest else failures + 1
                if failures >= (_ATTEMPTS if self.answered else _ATTEMPTS_UNANSWERED):
                    raise self._refusal(f"{error} ({failures} attempts)") from error
                delay_s = _FIRST_DELAY_S * 2 ** max(failures - 1, 0)
                on_note(f"Download: {error}; trying again in {delay_s:.0f} s")
                time.sleep(delay_s)

    def _attempt(self) -> bool:
        """Ask once for the bytes that the part lacks. False: the file is at another address, which is to be asked next."""
        version = self._version_of_part()
        size = self.part.stat().st_size if version else 0
        with self._ask(size) as response:
            status, is_page = response.status_code, _is_page(response)
            if status == 416 and response.headers.get("Content-Range") == f"bytes */{size}":
                self.on_progress(size, size)
                return True
            start, total = _place_of(response)
            if status == 416 or (status == 206 and (is_page or start != size or _version_of(response) != version)):
                discard_part(self.part)
                raise _AttemptError("the server has another file by now, or sends another part than it was asked for")
            if status not in (200, 206):
                self._refuse_status(response)
            if is_page:
                self._confirm(self._page_of(response), response.url)
                return False
            self._write(response, size if status == 206 else 0, total)
            return True

    def _version_of_part(self) -> str:
        """The version of the file that the part belongs to; empty without a part, and for one that cannot be gone on from."""
        try:
            shown, version = _origin_of(self.part).read_text().splitlines()
        except (OSError, ValueError):
            return ""
        return version if shown == self.shown and self.part.exists() else ""

    def _ask(self, size: int) -> Response:
        headers = {"Range": f"bytes={size}-"} if size else {}
        with self._reword_errors():
            response = self.session.get(self.url, headers=headers, stream=True, timeout=_TIMEOUTS_S)
        self.answered = True
        schemes = {urlsplit(hop.url).scheme for hop in (*response.history, response)}
        if urlsplit(self.url).scheme == "https" and schemes != {"https"}:
            response.close()  # no checksum is published that would tell a file changed on its way
            raise self._refusal("the server redirects to an address without encryption")
        return response

    def _write(self, response: Response, start: int, total: int | None) -> None:
        size = start
        with self.part.open("ab" if start else "wb") as stream:
            if start == 0:  # once the bytes of another version are gone
                _origin_of(self.part).write_text(f"{self.shown}\n{_version_of(response)}\n")
            self.on_progress(size, total)
            for block in filter(None, self._blocks(response)):
                stream.write(block)
                stream.flush()
                size += len(block)
                self.furthest = max(self.furthest, size)
                self.on_progress(size, total)
        if total is not None and size != total:  # more bytes, too, are mended by the next attempt
            raise _AttemptError(f"the server sent {size} of {total} bytes")

    def _blocks(self, response: Response) -> Iterator[bytes]:
        # Not response.iter_content: its urllib3 decodes, and then drops what came of a block before the connection was cut.
        with self._reword_errors():
            yield from response.raw.stream(_BLOCK_BYTES, decode_content=False)

    def _page_of(self, response: Response) -> str:
        with self._reword_errors():
            return str(response.raw.read(_PAGE_BYTES), errors="replace")

    def _confirm(self, page: str, page_url: str) -> None:
        """Go on at the address that Google's page before a large file leads to; refuse any other page."""
        url = None if self.confirmed else _confirmed_url(page, page_url)
        if url is None:
            raise self._refusal(_complaint_about(page))
        self.url, self.confirmed = url, True

    def _refuse_status(self, response: Response) -> None:
        status = response.status_code
        if status < 500 and _is_page(response) and _says_quota_exceeded(page := self._page_of(response)):
            raise self._refusal(_complaint_about(page))
        reason = one_line(f"the server answered {status} {response.reason or ''}")
        raise _AttemptError(reason) if status in (408, 429) or status >= 500 else self._refusal(reason)

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
            raise _AttemptError(f"could not connect to {host}: no answer") from error
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise _AttemptError("the server is silent") from error
        except requests.exceptions.ConnectionError as error:
            cause = _system_error(error)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise self._refusal(f"the TLS certificate of {host} cannot be trusted: {cause.verify_message}") from error
            peer = "the proxy" if isinstance(error, requests.exceptions.ProxyError) else host
            reason = "it does not speak HTTP" if cause is None else cause.strerror or str(cause)
            raise _AttemptError(f"could not connect to {peer}: {reason}") from error
        except requests.TooManyRedirects as error:
            raise self._refusal("the server redirects without end") from error
        except (requests.RequestException, urllib3.exceptions.LocationValueError) as error:
            # Not their texts, which repeat the URL with user and password.
            raise self._refusal("the URL, one that it redirects to, or that of the proxy is not valid") from error
        except urllib3.exceptions.HTTPError as error:
            raise _AttemptError("the connection was cut") from error
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


def _version_of(response: Response) -> str:
    """A strong ETag, else the date of the last change; empty where the server tells neither."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if tag.startswith("W/") else tag


def _is_page(response: Response) -> bool:
    return response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml+xml"))


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
    form = re.search(r'<form\b([^>]*\bid="download-form"[^>]*)>(.*?)</form>', page, re.IGNORECASE | re.DOTALL)
    if form is None:
        return None
    inputs = [_attributes(words) for words in re.findall(r"<input\b([^>]*)>", form[2], re.IGNORECASE)]
    fields = [(each["name"], each.get("value", "")) for each in inputs if each.get("name")]
    try:
        here, there = urlsplit(page_url), urlsplit(urljoin(page_url, _attributes(form[1]).get("action", "")))
        host = there.hostname or ""
    except ValueError:
        return None
    trusted = host == here.hostname or f".{host}".endswith((".google.com", ".googleusercontent.com"))
    if not trusted or there.scheme not in (here.scheme, "https"):
        return None
    return urlunsplit(there._replace(query=urlencode(parse_qsl(there.query) + fields)))


def _attributes(words: str) -> dict[str, str]:
    """The attributes of an HTML tag."""
    return {name.lower(): unescape(value) for name, value in re.findall(r'([\w-]+)\s*=\s*"([^"]*)"', words)}
