"""The bytes of a URL in a local file: all of them, or an error in one sentence."""

from __future__ import annotations

import errno
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

from drunet_cli import __version__
from drunet_cli.errors import WeightsError, one_line

if TYPE_CHECKING:
    from requests import RequestException, Response, Session


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


_COPY_BLOCK_BYTES = 1024 * 1024


def copy_file_url(url: str, part: Path, *, shown: str, on_progress: Callable[[int, int | None], None]) -> None:
    """Copy a file:// URL into the part. shown: the URL, as a message begins. Raises WeightsError, OSError for the part."""
    host, path = urlsplit(url)[1:3]
    source = Path(unquote(path))
    if host not in ("", "localhost") or not source.is_absolute() or "\0" in str(source):
        raise WeightsError(f"{shown}: not a valid file URL, which is file:// and an absolute path of this machine")
    try:
        total = source.stat().st_size
        if not source.is_file():  # a pipe or a device may never end
            raise WeightsError(f"{shown}: not a file")
    except OSError as error:
        raise WeightsError(f"{shown}: {error.strerror}") from error
    copied = 0
    with part.open("wb") as stream:
        for block in _file_blocks(source, shown):
            stream.write(block)
            copied += len(block)
            on_progress(copied, total)


def _file_blocks(source: Path, shown: str) -> Iterator[bytes]:
    # A generator of its own, so that only errors of reading are caught here, not those of writing the part.
    try:
        with source.open("rb") as stream:
            while block := stream.read(_COPY_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise WeightsError(f"{shown}: {error.strerror}") from error


# What is the same a few seconds later: no way to the host, nobody who listens, or a firewall that says no.
_UNREACHABLE: Final = {
    *(errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN),
    *(errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM),
}
_ATTEMPTS_AT_A_SILENT_HOST: Final = 2  # a firewall that drops what is sent looks like a packet that was lost


class AttemptError(Exception):
    """An attempt failed in a way that another one may mend.

    wait_s: how long the server asks to wait. most_attempts: how many make sense at a host that has never answered.
    """

    def __init__(self, reason: str, *, wait_s: float = 0.0, most_attempts: int | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.most_attempts = most_attempts


@contextmanager
def network_errors(shown: str, *, silence_s: float | None = None) -> Iterator[None]:
    """Put what requests and urllib3 raise into words: AttemptError where another attempt may help, else WeightsError.

    shown: the URL, as the message begins. silence_s: what a time-out means, by default all the time spent in the block:
    one address of a host is tried after the other, and a proxy or TLS may be what does not answer.
    """
    import ssl

    import requests
    import urllib3.exceptions

    began = time.monotonic()
    try:
        yield
    except requests.ConnectTimeout as error:
        reason = f"could not connect to {_host(error)}: no answer in {time.monotonic() - began:.1f} s"
        raise AttemptError(reason, most_attempts=_ATTEMPTS_AT_A_SILENT_HOST) from error
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        silent_s = time.monotonic() - began if silence_s is None else silence_s
        raise AttemptError(f"the server was silent for {silent_s:.1f} s") from error
    except requests.exceptions.ConnectionError as error:
        cause = _system_error(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise WeightsError(
                f"{shown}: the TLS certificate of {_host(error)} cannot be trusted: {cause.verify_message}"
            ) from error
        peer = "the proxy" if isinstance(error, requests.exceptions.ProxyError) else _host(error)
        reason = "it does not speak HTTP" if cause is None else cause.strerror or str(cause)
        raise AttemptError(f"could not connect to {peer}: {reason}", most_attempts=_attempts_after(cause)) from error
    except (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError) as error:
        raise AttemptError("the connection was cut") from error
    except requests.TooManyRedirects as error:
        raise WeightsError(f"{shown}: the server redirects without end") from error
    except requests.RequestException as error:  # their texts repeat the URL with user and password
        raise WeightsError(f"{shown}: the URL, one that it redirects to, or that of the proxy is not valid") from error
    except OSError as error:  # requests raises it, bare, for a REQUESTS_CA_BUNDLE that does not exist
        raise WeightsError(f"{shown}: {one_line(str(error))}") from error


def _attempts_after(cause: OSError | None) -> int | None:
    is_unreachable = isinstance(cause, socket.gaierror) or (cause is not None and cause.errno in _UNREACHABLE)
    return 1 if is_unreachable else None


def _host(error: RequestException) -> str:
    return (urlsplit(str(error.request.url)).hostname if error.request else None) or "the server"


def _system_error(error: BaseException) -> OSError | None:
    """What the operating system or the TLS library said, out of the exceptions that are wrapped around it."""
    inner = error.__cause__ or error.__context__
    return inner if inner is None or isinstance(inner, OSError) else _system_error(inner)


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


Progress = Callable[[int, int | None], None]

_BLOCK_BYTES = 64 * 1024  # a block that is cut short by a reset or a time-out is lost, so it is kept small
_LONGEST_DELAY_S = 30.0


@dataclass(frozen=True)
class Patience:
    """attempts: in a row without a new byte, before a download is given up; a host that has never answered gets two where it
    is silent, one where it cannot be reached. Delays double, up to 30 s, give or take 20 %."""

    attempts: int = 6
    first_delay_s: float = 1.0
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0


def fetch(
    url: str,
    part: Path,
    *,
    on_progress: Progress,
    on_retry: Callable[[str, float], None] = lambda *_: None,
    patience: Patience = Patience(),
) -> None:
    """Complete `part` with the bytes of `url` (http, https, file), going on after those it holds where the server can.

    on_progress: called with the bytes in the part and the file's length, None where the server does not tell.
    on_retry: called with the reason, and the seconds until the next attempt, whenever one has failed.
    Raises WeightsError, its message one line `URL: reason`, for all that is wrong with the URL, the network or the
    server, and OSError when the part cannot be written. The part stays, for a later call to go on with.
    """
    shown = shown_url(url)
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise WeightsError(f"{shown}: not a valid URL") from error
    if scheme == "file":
        copy_file_url(url, part, shown=shown, on_progress=on_progress)
    elif scheme in ("http", "https"):
        _download(url, part, shown, on_progress, on_retry, patience)
    else:
        meant = f"; for this file write file://{shown}" if shown.startswith("/") else ""
        raise WeightsError(f"{shown}: not a URL of a kind that can be fetched (http, https, file){meant}")


def shown_url(url: str) -> str:
    """A URL without user and password, which are nobody else's business, for messages and records."""
    return one_line(re.sub(r"//[^/?#]*@", "//", url))


@dataclass
class _Download:
    """One fetch under way, and what the answers so far have told.

    url: changes once, when the page before a large file on Google Drive is confirmed.
    validator, total: of the version of the file that the part belongs to.
    reached: the furthest byte written by this call; an attempt that does not get beyond it has made no progress.
    answered: whether the server ever has, whatever it said.
    """

    session: Session
    url: str
    part: Path
    shown: str
    on_progress: Progress
    patience: Patience
    confirmed: bool = False
    validator: str | None = None
    total: int | None = None
    reached: int = 0
    answered: bool = False

    def refuse(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        raise WeightsError(f"{self.shown}: {reason}") from cause


def _download(
    url: str, part: Path, shown: str, on_progress: Progress, on_retry: Callable[[str, float], None], patience: Patience
) -> None:
    import requests

    with requests.Session() as session:
        # "identity", so that bytes and lengths are those of the file; English, so that Google's pages can be told apart.
        session.headers.update({"User-Agent": f"drunet/{__version__}", "Accept-Encoding": "identity", "Accept-Language": "en"})
        download = _Download(session, url, part, shown, on_progress, patience)
        failures, since = 0, time.monotonic()
        while True:
            reached = download.reached
            try:
                if _attempt(download):
                    return
            except AttemptError as interruption:
                if download.reached > reached:
                    failures, since = 0, time.monotonic()
                else:
                    failures += 1
                _give_up_after(failures, since, download, interruption)
                delay_s = min(patience.first_delay_s * 2 ** max(failures - 1, 0), _LONGEST_DELAY_S)
                delay_s *= random.uniform(0.8, 1.2)  # noqa: S311  # spreads the clients of a server that comes back
                delay_s = max(delay_s, interruption.wait_s)
                on_retry(str(interruption), delay_s)
                time.sleep(delay_s)


def _give_up_after(failures: int, since: float, download: _Download, interruption: AttemptError) -> None:
    """Refuse to go on where enough attempts in a row have failed. since: when the first of them began."""
    most = download.patience.attempts
    if interruption.most_attempts is not None and not download.answered:
        most = min(most, interruption.most_attempts)
    if failures >= most:
        told = "" if failures == 1 else f" ({failures} attempts in {time.monotonic() - since:.0f} s)"
        download.refuse(f"{interruption}{told}", interruption)


def _attempt(download: _Download) -> bool:
    """Ask once, for what the part lacks. True: it is complete. False: a page was confirmed, so ask at once again."""
    start = download.part.stat().st_size if download.part.exists() else 0
    response = _ask(download, start)
    if start and response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{start}":
        response.close()
        download.on_progress(start, start)
        return True
    if start and not _continues(download, response, start):
        start = 0
        if response.status_code in (206, 416):
            response.close()
            response = _ask(download, start)
    with response:
        return _receive(download, response, start)


def _ask(download: _Download, start: int) -> Response:
    headers = {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if download.validator:
            headers["If-Range"] = download.validator
    timeout = (download.patience.connect_timeout_s, download.patience.read_timeout_s)
    with network_errors(download.shown):
        response = download.session.get(download.url, headers=headers, stream=True, timeout=timeout)
    download.answered = True
    if urlsplit(download.url).scheme == "https" != urlsplit(response.url).scheme:
        response.close()  # no check sum is published that would tell a file changed on its way
        download.refuse("the server redirects to an address without encryption")
    return response


def _continues(download: _Download, response: Response, start: int) -> bool:
    """Whether the answer begins where the part ends and is not known to belong to another version of the file."""
    validator, total = version_of(response), length_of(response)
    return (
        first_byte_of(response) == start
        and not has_html_type(response)
        and (validator is None or download.validator in (None, validator))
        and (total is None or download.total in (None, total))
    )


def _receive(download: _Download, response: Response, start: int) -> bool:
    blocks = _blocks(download, response)
    if response.status_code not in (200, 206):
        _refuse_status(download, response, blocks)
    # Nothing is written, nor cut off, before it is known that this is not a web page.
    opening = opening_of(blocks) if start == 0 else b""
    if has_html_type(response) or is_html(opening):
        _confirm(download, read_page(chain([opening], blocks)), response.url)
        return False
    if response.headers.get("Content-Encoding", "identity") != "identity":
        download.refuse("the server compressed the file although it was asked not to")
    if response.status_code == 206 and first_byte_of(response) != start:
        raise AttemptError("the server sent another part of the file than it was asked for")
    validator, total = version_of(response), length_of(response)
    download.validator = download.validator if start and validator is None else validator
    download.total = download.total if start and total is None else total
    _write(download, chain([opening], blocks), start)
    return True


def _write(download: _Download, blocks: Iterator[bytes], start: int) -> None:
    size, total = start, download.total
    with download.part.open("ab" if start else "wb") as stream:
        download.on_progress(size, total)
        for block in filter(None, blocks):  # an empty one is no progress
            if total is not None and size + len(block) > total:
                download.refuse(f"the server sent more than the {total} bytes that it had announced")
            stream.write(block)
            stream.flush()
            size += len(block)
            download.reached = max(download.reached, size)
            download.on_progress(size, total)
    if total is not None and size < total:
        raise AttemptError(f"the server sent {size} of {total} bytes")


def _blocks(download: _Download, response: Response) -> Iterator[bytes]:
    # Not response.iter_content: its urllib3 decodes, and then drops what came of a block before the connection was cut.
    with network_errors(download.shown, silence_s=download.patience.read_timeout_s):
        yield from response.raw.stream(_BLOCK_BYTES, decode_content=False)


def _refuse_status(download: _Download, response: Response, blocks: Iterator[bytes]) -> NoReturn:
    status = response.status_code
    if status < 500 and has_html_type(response):
        _refuse_quota(download, read_page(blocks))
    reason = one_line(f"the server answered {status} {response.reason or ''}")
    if status in (408, 429) or status >= 500:
        raise AttemptError(reason, wait_s=retry_after_s(response))
    download.refuse(reason)


def _confirm(download: _Download, page: WebPage, page_url: str) -> None:
    """Let the download go on at the address that Google's page before a large file leads to; refuse any other page."""
    _refuse_quota(download, page)
    url = confirmed_url(page, page_url)
    if url is None or download.confirmed:
        title = one_line(page.title)[:80]
        download.refuse("the server sent a web page instead of the file" + (f': "{title}"' if title else ""))
    download.url, download.confirmed = url, True


def _refuse_quota(download: _Download, page: WebPage) -> None:
    if page.says_quota_exceeded:
        download.refuse("Google's download quota for this file is used up: try again in 24 hours, or import it by hand")


# What file systems without advisory locks answer: NFS without its lock daemon, Lustre without -o flock, some FUSE.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}


@contextmanager
def exclusive(path: Path, *, on_wait: Callable[[], None], poll_s: float = 0.5) -> Iterator[bool]:
    """Hold the advisory lock on `path`, a file made if absent, for as long as the block runs; wait while another holds it.

    on_wait: called once, when the lock is first found taken.
    Yields True with the lock, False where the platform or the file system has none: it spares work, it guards no result.
    The kernel frees the lock of a killed process. The file stays: a process waiting on a deleted one would lock nothing.
    Raises OSError when the file cannot be made or opened for writing.
    """
    descriptor = _opened(path)
    try:
        yield _wait(descriptor, on_wait, poll_s)
    finally:
        _release(descriptor)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # for writing: NFS grants exclusive locks on nothing else
    except PermissionError:  # another user's file in a shared folder; NFS will answer EBADF to the lock
        return os.open(path, os.O_RDONLY)


def _wait(descriptor: int, on_wait: Callable[[], None], poll_s: float) -> bool:
    try:
        import fcntl
    except ImportError:  # not POSIX
        return False
    waiting = False
    while True:
        # Polled, not left to the kernel: a lock daemon that does not answer would hold Ctrl-C back as well.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                waiting = True
                on_wait()
            time.sleep(poll_s)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        else:
            return True


def _release(descriptor: int) -> None:
    try:
        import fcntl

        # Closing would leave the lock with a child that was forked meanwhile and has a copy of the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except (ImportError, OSError):  # there was no lock to give back
        pass
    finally:
        os.close(descriptor)
