"""The bytes of a URL in a local part file: all of them, or an error. No torch; requests only once a download begins."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from drunet_cli import __version__
from drunet_cli.errors import WeightsError, one_line
from drunet_cli.weights.answer import first_byte_of, length_of, retry_after_s, version_of
from drunet_cli.weights.local_copy import copy_file_url
from drunet_cli.weights.network_errors import AttemptError, network_errors
from drunet_cli.weights.web_page import WebPage, confirmed_url, has_html_type, is_html, opening_of, read_page

if TYPE_CHECKING:
    from requests import Response, Session

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
