import errno
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
import urllib3.util.connection

from drunet_cli.errors import WeightsError
from drunet_cli.weights import download
from drunet_cli.weights.download import Patience, WebPage, confirmed_url, fetch
from tests.weights.file_server import Answer, serving

CONTENT = random.Random(0).randbytes(300_000)
QUICK = Patience(attempts=3, first_delay_s=0.001, connect_timeout_s=5, read_timeout_s=5)
HTML = {"Content-Type": "text/html; charset=utf-8"}

FORM_PAGE = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p>Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="%b" method="get"><input type="submit" id="uc-download-link" value="Download anyway"/>
<input type="hidden" name="id" value="1v8b5"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="8f3a-&amp;"></form>
<form action="/elsewhere"><input name="other" value="no"></form></body></html>"""
LINK_PAGE = b"""<html><head><title>Google Drive - Virus scan warning</title></head><body><a href="/help">Help</a>
<a id="uc-download-link" href="/uc?export=download&amp;confirm=XyZ1&amp;id=1v8b5">Download anyway</a></body></html>"""
QUOTA_PAGE = b"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p>Sorry, you can't view or download this file at this time.</p></body></html>"""
QUOTA_PAGE_BY_TEXT = b"""<html><head><title>Google Drive</title></head><body><p>Too many users have viewed or
downloaded this file recently. Please try accessing the file again later.</p></body></html>"""
SIGN_IN_PAGE = b"<!DOCTYPE html><html><head><title>\n Sign\x07 in \xe2\x80\xae - \n Google Accounts</title></head></html>"


def page(body: bytes, **headers: str) -> Answer:
    return Answer(body=body, status=200, headers={**HTML, **headers})


@pytest.fixture(autouse=True)
def no_proxy_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "weights.h5.part"


@pytest.fixture
def sleeps_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays of the download, which are noted and left out."""
    delays: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=delays.append, monotonic=time.monotonic))
    return delays


def ignore_progress(size: int, total: int | None) -> None:
    pass


def got(url: str, part: Path, patience: Patience = QUICK) -> bytes:
    fetch(url, part, on_progress=ignore_progress, patience=patience)
    return part.read_bytes()


def refusal(url: str, part: Path, patience: Patience = QUICK) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(url, part, on_progress=ignore_progress, patience=patience)
    message = str(caught.value)
    assert "\n" not in message
    assert "Pool(" not in message
    assert "object at 0x" not in message
    return message


# The whole file


def test_the_file_arrives_byte_for_byte(part: Path) -> None:
    with serving(CONTENT) as server:
        assert got(server.url, part) == CONTENT


def test_progress_rises_to_the_length_of_the_file(part: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    with serving(CONTENT) as server:
        fetch(server.url, part, on_progress=lambda size, total: calls.append((size, total)), patience=QUICK)

    assert calls == sorted(calls)
    assert calls[0] == (0, len(CONTENT))
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert len(calls) > 3


def test_progress_knows_no_total_where_the_server_tells_none(part: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    with serving(CONTENT, Answer(chunked=True)) as server:
        fetch(server.url, part, on_progress=lambda size, total: calls.append((size, total)), patience=QUICK)

    assert part.read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), None)


def test_an_empty_file_arrives(part: Path) -> None:
    with serving(b"") as server:
        assert got(server.url, part) == b""


def test_the_request_names_drunet_and_asks_for_the_bytes_as_they_are(part: Path) -> None:
    with serving(CONTENT) as server:
        fetch(server.url, part, on_progress=ignore_progress, patience=QUICK)

    assert server.requests[0].headers["User-Agent"].startswith("drunet/")
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_redirections_are_followed(part: Path) -> None:
    with serving(CONTENT, Answer(status=302, body=b"", headers={"Location": "/elsewhere"})) as server:
        assert got(server.url, part) == CONTENT


def test_a_file_that_the_server_compressed_is_refused(part: Path) -> None:
    with serving(CONTENT, Answer(headers={"Content-Encoding": "gzip"})) as server:
        assert "compressed the file" in refusal(server.url, part)


# Going on where a part ends


def test_the_part_of_an_earlier_run_is_completed(part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    with serving(CONTENT) as server:
        assert got(server.url, part) == CONTENT

    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize("cut", [1000, 100_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_download_goes_on_from_its_last_byte(part: Path, cut: int, chunked: bool) -> None:
    with serving(CONTENT, *[Answer(cut_after=cut, chunked=chunked, block=500)] * 2) as server:
        assert got(server.url, part) == CONTENT

    assert server.ranges == [None, f"bytes={cut}-", f"bytes={2 * cut}-"]


def test_a_complete_part_is_left_as_it_is(part: Path) -> None:
    part.write_bytes(CONTENT)
    with serving(CONTENT) as server:
        assert got(server.url, part) == CONTENT

    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_replaced(part: Path) -> None:
    part.write_bytes(CONTENT + b"more")
    with serving(CONTENT) as server:
        assert got(server.url, part) == CONTENT


def test_a_part_that_the_server_cannot_go_on_from_is_replaced(part: Path) -> None:
    part.write_bytes(b"stale" * 1000)
    with serving(CONTENT, Answer(ranges=False)) as server:
        assert got(server.url, part) == CONTENT

    assert len(server.requests) == 1


def test_another_range_than_the_one_asked_for_is_not_appended(part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    wrong = Answer(status=206, body=CONTENT[500:], headers={"Content-Range": f"bytes 500-299999/{len(CONTENT)}"})
    with serving(CONTENT, wrong) as server:
        assert got(server.url, part) == CONTENT

    assert server.ranges == ["bytes=1000-", None]


def test_a_range_that_nobody_asked_for_is_not_taken_for_the_file(part: Path) -> None:
    unasked = Answer(status=206, body=CONTENT[500:], headers={"Content-Range": f"bytes 500-299999/{len(CONTENT)}"})
    with serving(CONTENT, unasked) as server:
        assert got(server.url, part) == CONTENT


@pytest.mark.parametrize("total", ["300000", "*"])
def test_a_range_that_ends_before_the_file_does_is_gone_on_from(part: Path, total: str) -> None:
    short = Answer(status=206, body=CONTENT[1000:2000], headers={"Content-Range": f"bytes 1000-1999/{total}"})
    with serving(CONTENT, Answer(cut_after=1000), short) as server:
        assert got(server.url, part) == CONTENT

    assert server.ranges == [None, "bytes=1000-", "bytes=2000-"]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_meanwhile_is_fetched_anew(part: Path, if_range: bool) -> None:
    old, new = Answer(etag='"old"', body=b"old" * 100_000, cut_after=1000), Answer(etag='"new"', if_range=if_range)
    with serving(CONTENT, old, default=new) as server:
        assert got(server.url, part) == CONTENT

    assert server.requests[1].headers["If-Range"] == '"old"'


def test_a_file_that_changes_its_length_meanwhile_is_fetched_anew(part: Path) -> None:
    with serving(CONTENT, Answer(body=CONTENT[::-1] + b"more", cut_after=1000)) as server:
        assert got(server.url, part) == CONTENT


@pytest.mark.parametrize(("etag", "validator"), [('"strong"', '"strong"'), ('W/"weak"', "Tue, 01 Dec 2020 00:00:00 GMT")])
def test_a_resumed_download_names_the_version_it_began_with(part: Path, etag: str, validator: str) -> None:
    dated = {"Last-Modified": "Tue, 01 Dec 2020 00:00:00 GMT"}
    with serving(CONTENT, Answer(etag=etag, headers=dated, cut_after=1000), default=Answer(if_range=False)) as server:
        assert got(server.url, part) == CONTENT

    assert server.requests[1].headers["If-Range"] == validator


def test_the_version_is_remembered_when_a_later_answer_does_not_name_it(part: Path) -> None:
    with serving(CONTENT, Answer(etag='"1"', cut_after=1000), default=Answer(if_range=False, cut_after=200_000)) as server:
        assert got(server.url, part) == CONTENT

    assert [request.headers.get("If-Range") for request in server.requests] == [None, '"1"', '"1"']


# Patience


def test_attempts_are_counted_anew_after_every_progress(part: Path) -> None:
    with serving(CONTENT, *[Answer(cut_after=30_000), Answer(status=503), Answer(cut_after=0)] * 9) as server:
        assert got(server.url, part) == CONTENT


def test_a_server_that_stays_short_without_progress_is_given_up(part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    with serving(CONTENT, default=Answer(cut_after=0)) as server:
        message = refusal(server.url, part)

    assert message.endswith(" (3 attempts in 0 s)")  # whether "cut" or "N of M bytes" depends on the version of urllib3
    assert len(server.requests) == 3
    assert part.read_bytes() == CONTENT[:1000]


def test_a_server_that_begins_anew_each_time_and_never_ends_is_given_up(part: Path) -> None:
    cuts = [100, 90, 99, 95]
    with serving(CONTENT, *[Answer(ranges=False, cut_after=cut) for cut in cuts]) as server:
        refusal(server.url, part)

    assert len(server.requests) == 4


def test_announcing_more_bytes_than_are_sent_is_never_a_complete_file(part: Path) -> None:
    with serving(CONTENT, default=Answer(ranges=False, headers={"Content-Length": "300001"})) as server:
        assert "(3 attempts in 0 s)" in refusal(server.url, part)


def test_only_as_many_bytes_are_taken_as_were_announced(part: Path) -> None:
    with serving(CONTENT, Answer(headers={"Content-Length": "1000"})) as server:
        assert got(server.url, part) == CONTENT[:1000]


def test_more_bytes_than_announced_are_an_error(part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    longer = Answer(status=206, body=CONTENT[1000:], headers={"Content-Range": "bytes 1000-1999/2000"})
    with serving(CONTENT, longer) as server:
        assert refusal(server.url, part) == f"{server.url}: the server sent more than the 2000 bytes that it had announced"

    assert part.stat().st_size <= 2000


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_failure_of_the_server_is_tried_again(part: Path, status: int) -> None:
    with serving(CONTENT, *[Answer(status=status, body=b"busy")] * 2) as server:
        assert got(server.url, part) == CONTENT

    assert len(server.requests) == 3


def test_a_lasting_failure_of_the_server_is_told_in_words(part: Path) -> None:
    with serving(CONTENT, default=Answer(status=503, body=b"")) as server:
        assert refusal(server.url, part) == f"{server.url}: the server answered 503 Service Unavailable (3 attempts in 0 s)"


@pytest.mark.parametrize(("status", "words"), [(401, "Unauthorized"), (403, "Forbidden"), (404, "Not Found"), (410, "Gone")])
def test_a_refusal_by_the_server_is_final(part: Path, status: int, words: str) -> None:
    part.write_bytes(CONTENT[:1000])
    with serving(CONTENT, default=Answer(status=status, body=b"<html>no</html>", headers=HTML)) as server:
        assert refusal(server.url, part) == f"{server.url}: the server answered {status} {words}"

    assert len(server.requests) == 1
    assert part.read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize(("retry_after", "waited_s"), [("7", 7), ("3600", 60)])
def test_the_server_says_how_long_to_wait_up_to_a_minute(
    part: Path, retry_after: str, waited_s: float, sleeps_s: list[float]
) -> None:
    with serving(CONTENT, Answer(status=503, body=b"", headers={"Retry-After": retry_after})) as server:
        assert got(server.url, part) == CONTENT

    assert sleeps_s == [waited_s]


def test_a_date_to_wait_for_is_not_waited_for(part: Path, sleeps_s: list[float]) -> None:
    dated = {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}
    with serving(CONTENT, Answer(status=503, body=b"", headers=dated)) as server:
        assert got(server.url, part) == CONTENT

    assert sleeps_s == [pytest.approx(QUICK.first_delay_s, rel=0.2)]


def test_delays_double_up_to_half_a_minute(part: Path, sleeps_s: list[float]) -> None:
    with serving(CONTENT, default=Answer(status=503, body=b"")) as server:
        refusal(server.url, part, Patience(attempts=5, first_delay_s=6))

    # Jitter is 20 %, as Patience says.
    assert sleeps_s == [pytest.approx(delay_s, rel=0.2) for delay_s in (6, 12, 24, 30)]


def test_a_silent_server_is_given_up_after_the_read_timeout(part: Path) -> None:
    with serving(CONTENT, default=Answer(silence_s=0.3)) as server:
        message = refusal(server.url, part, Patience(attempts=2, first_delay_s=0.001, read_timeout_s=0.1))

    assert re.fullmatch(rf"{server.url}: the server was silent for 0\.\d s \(2 attempts in \d s\)", message)


def test_a_time_out_is_told_by_what_it_took_and_not_by_what_was_allowed(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where TLS, a proxy, or the second address of the host does not answer in time."""

    def get(*_: object, **__: object) -> NoReturn:
        time.sleep(0.3)
        raise requests.ReadTimeout

    monkeypatch.setattr(requests.Session, "get", get)
    message = refusal("http://weights.invalid/w.h5", part, Patience(attempts=1, read_timeout_s=60))
    found = re.search(r"silent for (\d+\.\d) s$", message)
    assert found is not None
    assert 0.3 <= float(found[1]) < 30


def test_a_download_that_stalls_goes_on_with_a_new_connection(part: Path) -> None:
    stalling = Answer(block=100_000, pause_s=0.3, cut_after=200_000)
    with serving(CONTENT, stalling) as server:
        assert got(server.url, part, Patience(attempts=2, first_delay_s=0.001, read_timeout_s=0.1)) == CONTENT

    assert len(server.requests) == 2


def test_a_download_that_stalls_for_good_is_given_up_after_the_read_timeout(part: Path) -> None:
    with serving(CONTENT, Answer(cut_after=1000), default=Answer(block=1, pause_s=0.3, cut_after=1)) as server:
        message = refusal(server.url, part, Patience(attempts=1, first_delay_s=0.001, read_timeout_s=0.1))

    assert message == f"{server.url}: the server was silent for 0.1 s"


def test_a_slow_download_is_not_a_stalled_one(part: Path) -> None:
    with serving(CONTENT, Answer(block=30_000, pause_s=0.03)) as server:
        assert got(server.url, part, Patience(attempts=1, read_timeout_s=0.2)) == CONTENT


# Web pages instead of the file


def test_the_form_before_a_large_file_is_confirmed(part: Path) -> None:
    with serving(CONTENT, page(FORM_PAGE % b"/download?authuser=0", **{"Set-Cookie": "seen=1"})) as server:
        assert got(server.url, part) == CONTENT

    followed = urlsplit(server.requests[1].path)
    assert followed.path == "/download"
    assert parse_qsl(followed.query) == [
        ("authuser", "0"), ("id", "1v8b5"), ("export", "download"), ("confirm", "t"), ("uuid", "8f3a-&")
    ]  # fmt: skip
    assert server.requests[1].headers["Cookie"] == "seen=1"


def test_the_link_before_a_large_file_is_confirmed(part: Path) -> None:
    with serving(CONTENT, page(LINK_PAGE)) as server:
        assert got(server.url, part) == CONTENT

    assert server.requests[1].path == "/uc?export=download&confirm=XyZ1&id=1v8b5"


def test_a_confirmed_download_resumes_at_the_confirmed_address(part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    with serving(CONTENT, page(FORM_PAGE % b"/download"), Answer(cut_after=1000)) as server:
        assert got(server.url, part) == CONTENT

    assert server.ranges == ["bytes=1000-", "bytes=1000-", "bytes=2000-"]
    assert server.requests[1].path == server.requests[2].path != server.requests[0].path


@pytest.mark.parametrize(("status", "content_range"), [(206, "bytes 1000-1100/1101"), (416, "bytes */900")])
def test_a_page_that_is_itself_sent_in_ranges_costs_no_byte_of_the_part(part: Path, status: int, content_range: str) -> None:
    part.write_bytes(CONTENT[:1000])
    ranged = Answer(status=status, body=b"s</html>", headers={**HTML, "Content-Range": content_range})
    with serving(CONTENT, ranged, page(FORM_PAGE % b"/download")) as server:
        assert got(server.url, part) == CONTENT

    assert server.ranges == ["bytes=1000-", None, "bytes=1000-"]


def test_a_confirmation_leads_on_to_a_server_of_google(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT, page(FORM_PAGE % b"http://drive.usercontent.google.com/download")) as server:
        monkeypatch.setenv("http_proxy", f"http://{server.address}")  # stands in for Google
        assert got("http://drive.google.com/uc?id=1v8b5", part) == CONTENT

    assert server.requests[1].path.startswith("http://drive.usercontent.google.com/download?id=1v8b5&")


@pytest.mark.parametrize(
    "action",
    [
        b"http://evil.example/download",
        b"http://google.com.evil.example/download",
        b"http://evilgoogle.com/download",
        b"http://127.0.0.1@evil.example/download",
        b"ftp://127.0.0.1/download",
        b"file:///etc/passwd",
        b"http://[/download",
        b"",
    ],
)
def test_a_confirmation_leads_nowhere_else(part: Path, action: bytes) -> None:
    with serving(CONTENT, page(FORM_PAGE % action)) as server:
        message = refusal(server.url, part)

    assert message == f'{server.url}: the server sent a web page instead of the file: "Google Drive - Virus scan warning"'
    assert len(server.requests) == 1


@pytest.mark.parametrize(("action", "allowed"), [("https://google.com/download", True), ("http://google.com/download", False)])
def test_an_encrypted_page_leads_to_encrypted_ones_only(action: str, allowed: bool) -> None:
    form = WebPage((FORM_PAGE % action.encode()).decode())

    assert (confirmed_url(form, "https://drive.google.com/uc") is not None) is allowed


def test_a_form_that_would_send_something_is_not_followed(part: Path) -> None:
    with serving(CONTENT, page((FORM_PAGE % b"/download").replace(b'method="get"', b'method="post"'))) as server:
        assert "a web page instead of the file" in refusal(server.url, part)


def test_a_confirmation_that_leads_to_another_is_not_followed_twice(part: Path) -> None:
    with serving(CONTENT, default=page(FORM_PAGE % b"/download")) as server:
        assert "a web page instead of the file" in refusal(server.url, part)

    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [200, 403, 429])
@pytest.mark.parametrize("body", [QUOTA_PAGE, QUOTA_PAGE_BY_TEXT])
def test_an_exceeded_quota_is_told_at_once(part: Path, status: int, body: bytes) -> None:
    part.write_bytes(CONTENT[:1000])
    with serving(CONTENT, default=Answer(status=status, body=body, headers=HTML)) as server:
        message = refusal(server.url, part)

    assert "quota for this file is used up: try again in 24 hours, or import it by hand" in message
    assert len(server.requests) == 1
    assert part.read_bytes() == CONTENT[:1000]


def test_any_other_page_is_refused_by_its_title(part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    with serving(CONTENT, default=page(SIGN_IN_PAGE)) as server:
        message = refusal(server.url, part)

    assert message == f'{server.url}: the server sent a web page instead of the file: "Sign in - Google Accounts"'
    assert len(server.requests) == 1
    assert part.read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize(
    ("body", "title"),
    [
        (b"<html><title>" + b"x" * 100 + b"</title>", ': "' + "x" * 80 + '"'),
        (b"<html><body>Welcome</body></html>", ""),
        (b"<script>location = '/portal'</script>", ""),
        (b"<html><![malformed <title>never read</title>", ""),
        (b"<html>" + b" " * 1024 * 1024 + b"<title>too far down</title>", ""),
    ],
)
def test_a_page_is_quoted_by_no_more_than_a_short_title(part: Path, body: bytes, title: str) -> None:
    with serving(CONTENT, page(body)) as server:
        assert refusal(server.url, part) == f"{server.url}: the server sent a web page instead of the file{title}"


def test_a_page_without_end_is_not_read_to_its_end(part: Path) -> None:
    endless = Answer(status=200, body=b"<html>" + b" " * 3 * 1024 * 1024, cut_after=2 * 1024 * 1024)
    with serving(CONTENT, endless) as server:
        assert "a web page instead of the file" in refusal(server.url, part)


@pytest.mark.parametrize("block", [1, 64 * 1024])
@pytest.mark.parametrize("body", [b"\r\n <!DOCTYPE HTML><title>Portal</title>", b"<HTML><title>Portal</title>"])
def test_a_page_that_is_announced_as_a_file_is_found_out(part: Path, body: bytes, block: int) -> None:
    part.write_bytes(CONTENT[:1000])
    with serving(CONTENT, Answer(status=200, body=body, chunked=True, block=block)) as server:
        assert refusal(server.url, part).endswith('a web page instead of the file: "Portal"')

    assert part.read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("content", [b" \n<", b"<htm", b"<!doctype", b"<svg>"])
def test_a_file_that_only_resembles_a_page_arrives(part: Path, content: bytes) -> None:
    with serving(content) as server:
        assert got(server.url, part) == content


# Proxies, and connections that fail


def test_a_proxy_is_used_where_the_environment_names_one(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT) as server:
        monkeypatch.setenv("http_proxy", f"http://{server.address}")
        assert got("http://weights.invalid/weights.h5", part) == CONTENT

    assert server.requests[0].path == "http://weights.invalid/weights.h5"


def closed_address() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_refused_connection_is_told_in_words(part: Path) -> None:
    url = f"http://{closed_address()}/weights.h5"

    assert refusal(url, part) == f"{url}: could not connect to 127.0.0.1: Connection refused"


def test_a_refusing_proxy_is_told_in_words(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{closed_address()}")

    assert "could not connect to the proxy: Connection refused" in refusal("http://weights.invalid/w.h5", part)


def test_an_unknown_host_is_told_in_words(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    assert "could not connect to weights.invalid: Name or service not known" in refusal("http://weights.invalid/w.h5", part)


def no_such_name(*_: object, **__: object) -> NoReturn:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def no_name_server(*_: object, **__: object) -> NoReturn:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def no_route(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENETUNREACH, "Network is unreachable")


@pytest.mark.parametrize("way", [no_such_name, no_name_server, no_route])
def test_a_host_that_cannot_be_reached_is_given_up_at_once(
    part: Path, monkeypatch: pytest.MonkeyPatch, sleeps_s: list[float], way: Callable[..., NoReturn]
) -> None:
    monkeypatch.setattr(urllib3.util.connection, "create_connection", way)
    message = refusal("http://weights.invalid/w.h5", part, Patience())
    assert message.startswith("http://weights.invalid/w.h5: could not connect to weights.invalid: ")
    assert "attempts" not in message
    assert sleeps_s == []


def test_a_host_where_nobody_listens_is_given_up_at_once(part: Path, sleeps_s: list[float]) -> None:
    refusal(f"http://{closed_address()}/weights.h5", part, Patience())
    assert sleeps_s == []


def test_a_host_that_does_not_answer_is_tried_twice(part: Path, monkeypatch: pytest.MonkeyPatch, sleeps_s: list[float]) -> None:
    def silent(*_: object, **__: object) -> NoReturn:
        raise TimeoutError

    monkeypatch.setattr(urllib3.util.connection, "create_connection", silent)
    message = refusal("http://weights.invalid/w.h5", part, Patience())
    assert message.endswith("could not connect to weights.invalid: no answer in 0.0 s (2 attempts in 0 s)")
    assert len(sleeps_s) == 1


def test_a_host_that_goes_away_in_the_middle_is_tried_as_often_as_any(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_the_network(_reason: str, _delay_s: float) -> None:
        monkeypatch.setattr(urllib3.util.connection, "create_connection", no_route)

    with (
        serving(CONTENT, Answer(cut_after=1000)) as server,
        pytest.raises(WeightsError, match=r"Network is unreachable \(3 attempts in \d s\)"),
    ):
        fetch(server.url, part, on_progress=ignore_progress, on_retry=lose_the_network, patience=QUICK)
    assert part.read_bytes() == CONTENT[:1000]


def test_an_answer_that_is_not_http_is_told_in_words(part: Path) -> None:
    with serving(CONTENT, default=Answer(raw=b"220 mail.example ESMTP\r\n")) as server:
        assert "could not connect to 127.0.0.1: it does not speak HTTP" in refusal(server.url, part)


def test_redirections_without_end_are_given_up(part: Path) -> None:
    with serving(CONTENT, default=Answer(status=302, body=b"", headers={"Location": "/again"})) as server:
        assert refusal(server.url, part) == f"{server.url}: the server redirects without end"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_certificate_that_cannot_be_trusted_is_final(part: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *curve, *subject, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def shake_hands_once() -> None:
        connection, _ = listening.accept()
        with connection, pytest.raises(ssl.SSLError, match="unknown ca"):
            context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=shake_hands_once)
        server.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/weights.h5"
        message = refusal(url, part)
        server.join()

    assert message == f"{url}: the TLS certificate of 127.0.0.1 cannot be trusted: self-signed certificate"


def test_an_absent_list_of_certificate_authorities_is_told_in_words(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/absent/authorities.pem")

    assert "/absent/authorities.pem" in refusal(f"https://{closed_address()}/weights.h5", part)


def test_user_and_password_are_not_told(part: Path) -> None:
    with serving(CONTENT, Answer(status=404)) as server:
        message = refusal(f"http://me:secret@{server.address}/w.h5", part)

    assert message == f"http://{server.address}/w.h5: the server answered 404 Not Found"


@pytest.mark.parametrize("url", ["http://", "http://me:secret@", "http://[::1/w.h5", "http://a:b/w.h5", "https://*.example/w"])
def test_a_malformed_url_is_final(part: Path, url: str, sleeps_s: list[float]) -> None:
    message = refusal(url, part)

    assert "not valid" in message or "not a valid URL" in message
    assert "secret" not in message
    assert not sleeps_s


@pytest.mark.parametrize("url", ["weights.h5", "ftp://host/weights.h5", "C:\\weights.h5", ""])
def test_what_is_not_a_url_of_a_known_kind_is_refused_with_the_known_ones(part: Path, url: str) -> None:
    assert refusal(url, part) == f"{url}: not a URL of a kind that can be fetched (http, https, file)"


def test_a_path_in_place_of_a_url_is_refused_with_the_url(part: Path) -> None:
    assert refusal("/data/weights.h5", part).endswith("; for this file write file:///data/weights.h5")


# Files of this machine


def test_a_file_url_is_copied_with_progress(part: Path, tmp_path: Path) -> None:
    source = tmp_path / "100 % größe#1.h5"
    source.write_bytes(CONTENT * 10)
    part.write_bytes(b"stale")
    calls: list[tuple[int, int | None]] = []

    fetch(source.as_uri(), part, on_progress=lambda size, total: calls.append((size, total)))

    assert part.read_bytes() == CONTENT * 10
    assert calls[-1] == (3_000_000, 3_000_000)
    assert len(calls) > 1


def test_a_file_url_may_name_this_machine(part: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(CONTENT)

    assert got(f"file://localhost{tmp_path}/weights.h5", part) == CONTENT


def test_an_absent_file_is_told_in_words(part: Path, tmp_path: Path) -> None:
    url = (tmp_path / "absent.h5").as_uri()

    assert refusal(url, part) == f"{url}: No such file or directory"
    assert not part.exists()


def test_a_folder_is_not_a_file(part: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path.as_uri(), part) == f"{tmp_path.as_uri()}: not a file"


@pytest.mark.parametrize("url", ["file://otherhost/w.h5", "file:w.h5", "file:///w%00.h5", "file://"])
def test_a_malformed_file_url_is_refused(part: Path, url: str) -> None:
    assert "not a valid file URL" in refusal(url, part)


# What is left to the caller


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is played by /dev/full")
def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(CONTENT)
    with serving(CONTENT) as server:
        for url in (server.url, (tmp_path / "weights.h5").as_uri()):
            with pytest.raises(OSError, match="No space left on device"):
                fetch(url, Path("/dev/full"), on_progress=ignore_progress, patience=QUICK)

    assert len(server.requests) == 1


def test_a_part_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    with serving(CONTENT) as server, pytest.raises(FileNotFoundError):
        fetch(server.url, tmp_path / "absent" / "w.part", on_progress=ignore_progress, patience=QUICK)


def test_an_interrupt_leaves_the_part_for_the_next_run(part: Path) -> None:
    def interrupt(size: int, total: int | None) -> None:
        if size >= 100_000:
            raise KeyboardInterrupt

    with serving(CONTENT) as server:
        with pytest.raises(KeyboardInterrupt):
            fetch(server.url, part, on_progress=interrupt, patience=QUICK)
        interrupted_at = part.stat().st_size
        assert got(server.url, part) == CONTENT

    assert server.ranges == [None, f"bytes={interrupted_at}-"]
    assert interrupted_at >= 100_000


def test_bytes_are_on_disk_when_progress_tells_of_them(part: Path) -> None:
    differences: list[int] = []
    with serving(CONTENT, Answer(chunked=True, block=500)) as server:
        fetch(server.url, part, on_progress=lambda size, _: differences.append(part.stat().st_size - size), patience=QUICK)

    assert set(differences) == {0}


def test_the_module_loads_neither_requests_nor_torch() -> None:
    program = "import sys, drunet_cli.weights.download; sys.exit(bool({'requests', 'torch', 'urllib3'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
