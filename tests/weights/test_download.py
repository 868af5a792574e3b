"""The bytes of a URL arrive whole, or the reason is told in one line."""

import errno
import random
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Final, NoReturn
from urllib.parse import parse_qsl, urlsplit

import pytest
import urllib3.util.connection

from drunet_cli.errors import WeightsError
from drunet_cli.weights import download
from drunet_cli.weights.download import discard_part, fetch
from tests.weights.file_server import VERSION, Answer, FileServer, serving

CONTENT: Final = random.Random(0).randbytes(300_000)
HTML: Final = {"Content-Type": "text/html; charset=utf-8"}
FORM_PAGE: Final = b"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p>Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="%b" method="get"><input type="submit" id="uc-download-link" value="Download anyway"/>
<input type="hidden" name="id" value="1v8b5"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="8f3a-&amp;"></form>
<form action="/elsewhere"><input name="other" value="no"></form></body></html>"""
QUOTA_PAGE: Final = b"<html><head><title>Google Drive - Quota exceeded</title></head><body><p>Sorry.</p></body></html>"
QUOTA_PAGE_BY_TEXT: Final = b"""<html><head><title>Google Drive</title></head><body><p>Too many users have viewed or
downloaded this file recently. Please try accessing the file again later.</p></body></html>"""
SIGN_IN_PAGE: Final = (
    b"<!DOCTYPE html><html><head><title>\n Sign\x07 in \xe2\x80\xae - \n Google Accounts</title></head></html>"
)


def page(body: bytes, **headers: str) -> Answer:
    return Answer(body=body, status=200, headers={**HTML, **headers})


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "weights.h5.part"


@pytest.fixture(autouse=True)
def sleeps_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays of the download, which are noted and left out."""
    delays: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=delays.append))
    return delays


def got(url: str, part: Path) -> bytes:
    fetch(url, part, on_progress=lambda *_: None, on_note=lambda _: None)
    return part.read_bytes()


def leave_part(part: Path, content: bytes, server: FileServer) -> None:
    """Lay down what an interrupted run would have left."""
    part.write_bytes(content)
    part.with_name(f"{part.name}.origin").write_text(f"{server.url}\n{VERSION}\n")


def refusal(url: str, part: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        got(url, part)
    message = str(caught.value)
    for foreign in ("\n", "Pool(", "object at 0x", "secret"):
        assert foreign not in message
    return message


# Arrives


@pytest.mark.parametrize(
    "script",
    [
        [],
        [Answer(chunked=True, block=500)],
        [Answer(status=302, body=b"", headers={"Location": "/elsewhere"})],
    ],
    ids=["whole", "chunked", "redirected"],
)
def test_the_file_arrives_byte_for_byte_with_progress_that_is_on_the_disk(part: Path, script: list[Answer]) -> None:
    calls: list[tuple[int, int | None]] = []

    def note(size: int, total: int | None) -> None:
        calls.append((size, total))
        assert part.stat().st_size == size

    with serving(CONTENT, *script) as server:
        fetch(server.url, part, on_progress=note, on_note=print)
    assert part.read_bytes() == CONTENT
    total = None if script and script[0].chunked else len(CONTENT)
    assert calls == sorted(calls)
    assert (calls[0], calls[-1]) == ((0, total), (len(CONTENT), total))
    assert server.requests[0].headers["User-Agent"].startswith("drunet/")
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_an_empty_file_arrives(part: Path) -> None:
    with serving(b"") as server:
        assert got(server.url, part) == b""


def test_a_file_url_is_copied_anew(part: Path, tmp_path: Path) -> None:
    source = tmp_path / "100 % größe#1.h5"
    source.write_bytes(CONTENT * 10)
    part.write_bytes(b"stale")
    part.with_name(f"{part.name}.origin").touch()
    calls: list[tuple[int, int | None]] = []
    fetch(source.as_uri(), part, on_progress=lambda *call: calls.append(call), on_note=print)
    assert part.read_bytes() == CONTENT * 10
    assert not part.with_name(f"{part.name}.origin").exists()
    assert calls[-1] == (3_000_000, 3_000_000)
    (tmp_path / "w.h5").write_bytes(CONTENT)
    assert got(f"file://localhost{tmp_path}/w.h5", part) == CONTENT


def test_a_proxy_is_used_where_the_environment_names_one(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT) as server:
        monkeypatch.setenv("http_proxy", f"http://{server.address}")
        assert got("http://weights.invalid/weights.h5", part) == CONTENT
    assert server.requests[0].path == "http://weights.invalid/weights.h5"


# Resumes, or starts anew

WRONG_RANGE: Final = Answer(status=206, body=CONTENT[500:], headers={"Content-Range": f"bytes 500-299999/{len(CONTENT)}"})
SHORT_RANGE: Final = Answer(status=206, body=CONTENT[1000:2000], headers={"Content-Range": "bytes 1000-1999/*"})
TUESDAY: Final = {"Last-Modified": "Tue, 01 Dec 2020 00:00:00 GMT"}
WEDNESDAY: Final = {"Last-Modified": "Wed, 02 Dec 2020 00:00:00 GMT"}
UNDATED: Final = {"Last-Modified": ""}


def cut_and_asked_again(etag: str | None, before: Mapping[str, str], now: Mapping[str, str]) -> list[Answer]:
    """Answers of a server that tells versions by this ETag, and by a date before the first answer ends early and after it."""
    return [Answer(etag=etag, headers=before, cut_after=1000), *[Answer(etag=etag, headers=now)] * 2]


@pytest.mark.parametrize(
    ("held", "script", "ranges"),
    [
        (CONTENT[:1000], [], ["bytes=1000-"]),  # of an earlier run
        (CONTENT, [], [f"bytes={len(CONTENT)}-"]),  # complete
        (CONTENT + b"more", [], [f"bytes={len(CONTENT) + 4}-", None]),
        (b"stale" * 1000, [Answer(ranges=False)], ["bytes=5000-"]),
        (CONTENT[:1000], [WRONG_RANGE], ["bytes=1000-", None]),
        (b"", [WRONG_RANGE], [None, None]),  # nobody asked for it
        (CONTENT[:1000], [SHORT_RANGE], ["bytes=1000-"]),
        (b"", [Answer(cut_after=1000), Answer(cut_after=100_000)], [None, "bytes=1000-", "bytes=101000-"]),
        (b"", [Answer(cut_after=1000, chunked=True, block=500)], [None, "bytes=1000-"]),
        (b"", [Answer(body=CONTENT[::-1] + b"more", cut_after=1000, etag='"old"')], [None, "bytes=1000-", None]),
        (b"", cut_and_asked_again('"strong"', UNDATED, UNDATED), [None, "bytes=1000-"]),
        (b"", cut_and_asked_again('W/"weak"', TUESDAY, TUESDAY), [None, "bytes=1000-"]),
        (b"", cut_and_asked_again('W/"weak"', TUESDAY, WEDNESDAY), [None, "bytes=1000-", None]),
        (b"", cut_and_asked_again(None, UNDATED, UNDATED), [None, None]),
    ],
)
def test_a_part_is_gone_on_from_where_that_is_the_same_file(
    part: Path, held: bytes, script: list[Answer], ranges: list[str | None]
) -> None:
    with serving(CONTENT, *script, default=Answer(if_range=False)) as server:
        leave_part(part, held, server)
        found = got(server.url, part)
    if script == [SHORT_RANGE]:
        assert found == CONTENT[:2000]  # the server tells no length; the check of the weights finds out
    else:
        assert found == CONTENT
    assert server.ranges == ranges


@pytest.mark.parametrize("origin", ["", "http://elsewhere/weights.h5\n{version}\n", "{url}\n\n", '{url}\n"old"\n'])
def test_a_part_of_another_file_or_of_one_unknown_is_never_gone_on_from(part: Path, origin: str) -> None:
    with serving(CONTENT) as server:
        leave_part(part, CONTENT[:1000][::-1], server)
        part.with_name(f"{part.name}.origin").write_text(origin.format(url=server.url, version=VERSION))
        assert got(server.url, part) == CONTENT
    discard_part(part)
    assert list(part.parent.iterdir()) == []


def test_an_interrupt_leaves_the_part_for_the_next_run(part: Path) -> None:
    def interrupt(size: int, total: int | None) -> None:
        if size >= 100_000:
            raise KeyboardInterrupt

    with serving(CONTENT) as server:
        with pytest.raises(KeyboardInterrupt):
            fetch(server.url, part, on_progress=interrupt, on_note=print)
        interrupted_at = part.stat().st_size
        assert got(server.url, part) == CONTENT
    assert server.ranges == [None, f"bytes={interrupted_at}-"]


# Patience


def test_attempts_are_counted_anew_after_every_progress(part: Path) -> None:
    with serving(CONTENT, *[Answer(cut_after=30_000), Answer(status=503), Answer(cut_after=0)] * 9) as server:
        assert got(server.url, part) == CONTENT


@pytest.mark.parametrize("answer", [Answer(cut_after=0), Answer(ranges=False, headers={"Content-Length": "300001"})])
def test_a_server_that_stays_short_is_given_up(part: Path, answer: Answer) -> None:
    with serving(CONTENT, default=answer) as server:
        assert refusal(server.url, part).endswith("attempts)")
    assert len(server.requests) in (6, 7)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_of_the_server_is_tried_again_and_given_up_in_words(part: Path, status: int) -> None:
    busy = Answer(status=status, body=b"busy")
    with serving(CONTENT, busy, busy) as server:
        assert got(server.url, part) == CONTENT
    part.unlink()
    with serving(CONTENT, default=busy) as server:
        assert f"{server.url}: the server answered {status} " in refusal(server.url, part)
    assert len(server.requests) == 6


@pytest.mark.parametrize(("status", "words"), [(401, "Unauthorized"), (403, "Forbidden"), (404, "Not Found")])
def test_a_refusal_by_the_server_is_final(part: Path, status: int, words: str) -> None:
    with serving(CONTENT, default=Answer(status=status, body=b"<html>no</html>", headers=HTML)) as server:
        leave_part(part, CONTENT[:1000], server)
        assert refusal(server.url, part) == f"{server.url}: the server answered {status} {words}"
    assert len(server.requests) == 1
    assert part.read_bytes() == CONTENT[:1000]


def test_delays_double(part: Path, sleeps_s: list[float]) -> None:
    notes: list[str] = []
    with serving(CONTENT, default=Answer(status=503, body=b"")) as server, pytest.raises(WeightsError):
        fetch(server.url, part, on_progress=lambda *_: None, on_note=notes.append)
    assert sleeps_s == [1, 2, 4, 8, 16]
    assert notes[1] == "Download: the server answered 503 Service Unavailable; trying again in 2 s"


def test_a_server_that_falls_silent_is_gone_on_from_and_then_given_up(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalling = Answer(block=100_000, pause_s=0.3, cut_after=200_000)
    monkeypatch.setattr(download, "_TIMEOUTS_S", (5, 0.1))
    with serving(CONTENT, stalling) as server:
        assert got(server.url, part) == CONTENT
    with serving(CONTENT, default=Answer(silence_s=0.3)) as server:
        assert refusal(server.url, part) == f"{server.url}: the server is silent (2 attempts)"


def fail_to_connect(error: OSError) -> Callable[..., NoReturn]:
    def connect(*_: object, **__: object) -> NoReturn:
        raise error

    return connect


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (TimeoutError(), "no answer"),  # a firewall that drops what is sent looks like a packet that was lost
    ],
)
def test_a_host_that_has_never_answered_is_given_up_soon(
    part: Path, monkeypatch: pytest.MonkeyPatch, sleeps_s: list[float], error: OSError, words: str
) -> None:
    monkeypatch.setattr(urllib3.util.connection, "create_connection", fail_to_connect(error))
    message = refusal("http://weights.invalid/w.h5", part)
    assert message == f"http://weights.invalid/w.h5: could not connect to weights.invalid: {words} (2 attempts)"
    assert sleeps_s == [1]


def test_a_host_that_goes_away_in_the_middle_is_tried_as_often_as_any(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = fail_to_connect(OSError(errno.ENETUNREACH, "Network is unreachable"))
    with (
        serving(CONTENT, Answer(cut_after=1000)) as server,
        pytest.raises(WeightsError, match=r"Network is unreachable \(6 attempts\)"),
    ):
        fetch(
            server.url,
            part,
            on_progress=lambda *_: None,
            on_note=lambda _: monkeypatch.setattr(urllib3.util.connection, "create_connection", gone),
        )
    assert part.read_bytes() == CONTENT[:1000]


# Web pages instead of the file


def test_the_form_before_a_large_file_is_confirmed_and_the_download_resumes_behind_it(part: Path) -> None:
    form = page(FORM_PAGE % b"/download?authuser=0", **{"Set-Cookie": "seen=1"})
    with serving(CONTENT, form, Answer(cut_after=1000)) as server:
        leave_part(part, CONTENT[:1000], server)
        assert got(server.url, part) == CONTENT
    assert server.ranges == ["bytes=1000-", "bytes=1000-", "bytes=2000-"]
    followed = urlsplit(server.requests[1].path)
    assert followed.path == "/download"
    expected = {"authuser": "0", "id": "1v8b5", "export": "download", "confirm": "t", "uuid": "8f3a-&"}
    assert dict(parse_qsl(followed.query)) == expected
    assert server.requests[2].path == server.requests[1].path
    assert server.requests[1].headers["Cookie"] == "seen=1"


def test_a_range_of_a_page_is_asked_for_as_a_whole(part: Path) -> None:
    ranged = Answer(status=206, body=b"s</html>", headers={**HTML, "Content-Range": "bytes 1000-1100/1101"})
    with serving(CONTENT, ranged, page(FORM_PAGE % b"/download")) as server:
        leave_part(part, CONTENT[:1000], server)
        assert got(server.url, part) == CONTENT
    assert server.ranges == ["bytes=1000-", None, None]


def test_a_confirmation_leads_on_to_a_server_of_google(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT, page(FORM_PAGE % b"http://drive.usercontent.google.com/download")) as server:
        monkeypatch.setenv("http_proxy", f"http://{server.address}")  # stands in for Google
        assert got("http://drive.google.com/uc?id=1v8b5", part) == CONTENT
    assert server.requests[1].path.startswith("http://drive.usercontent.google.com/download?id=1v8b5&")


ELSEWHERE: Final = [
    *(b"http://evil.example/download", b"http://google.com.evil.example/download", b"http://evilgoogle.com/download"),
    *(b"http://127.0.0.1@evil.example/download", b"ftp://127.0.0.1/download", b"file:///etc/passwd", b"http://[/download"),
]
NOT_THE_FILE: Final = "the server sent a web page instead of the file"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        *((page(FORM_PAGE % action), f'{NOT_THE_FILE}: "Google Drive - Virus scan warning"') for action in ELSEWHERE),
        (page(FORM_PAGE % b"/again"), f'{NOT_THE_FILE}: "Google Drive - Virus scan warning"'),
        (page(SIGN_IN_PAGE), f'{NOT_THE_FILE}: "Sign in - Google Accounts"'),
        (page(b"<html><title>" + b"x" * 100 + b"</title>"), f'{NOT_THE_FILE}: "{"x" * 80}"'),
        (page(b"<html>" + b" " * 1024 * 1024 + b"<title>too far down</title>"), NOT_THE_FILE),
        (Answer(status=200, body=b"<title>Portal</title>", headers=HTML, chunked=True, block=1), f'{NOT_THE_FILE}: "Portal"'),
        *(
            (
                Answer(status=status, body=body, headers=HTML),
                "Google's download quota for this file is used up: try again in 24 h",
            )
            for status in (200, 403, 429)
            for body in (QUOTA_PAGE, QUOTA_PAGE_BY_TEXT)
        ),
    ],
)
def test_any_other_page_is_refused_at_once_and_costs_no_byte_of_the_part(part: Path, answer: Answer, words: str) -> None:
    with serving(CONTENT, default=answer) as server:
        leave_part(part, CONTENT[:1000], server)
        message = refusal(server.url, part)
    assert message.startswith(f"{server.url}: {words}")
    assert len(server.requests) == (2 if answer.body == FORM_PAGE % b"/again" else 1)
    assert part.read_bytes() == CONTENT[:1000]


# Connections and addresses that cannot work


def test_a_refusing_proxy_is_told_from_the_host(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert "could not connect to the proxy: Connection refused" in refusal("http://weights.invalid/w.h5", part)


def test_answers_that_make_no_sense_are_told_in_words(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENT, default=Answer(raw=b"220 mail.example ESMTP\r\n")) as server:
        assert "could not connect to 127.0.0.1: it does not speak HTTP" in refusal(server.url, part)
    with serving(CONTENT, default=Answer(status=302, body=b"", headers={"Location": "/again"})) as server:
        assert refusal(server.url, part) == f"{server.url}: the server redirects without end"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/absent/authorities.pem")
    assert "/absent/authorities.pem" in refusal("https://127.0.0.1:9/weights.h5", part)


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


@pytest.mark.parametrize("hops", [["http://a/w.h5"], ["http://a/w.h5", "https://b/w.h5"]])
def test_a_redirect_without_encryption_is_refused_wherever_it_leads(
    part: Path, hops: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    *passed, last = (SimpleNamespace(url=url, close=lambda: None) for url in hops)
    monkeypatch.setattr("requests.Session.get", lambda *_, **__: SimpleNamespace(**vars(last), history=passed))
    assert refusal("https://a/w.h5", part) == "https://a/w.h5: the server redirects to an address without encryption"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://", "the URL, one that it redirects to, or that of the proxy is not valid"),
        ("http://me:secret@", "not valid"),
        ("http://[::1/w.h5", "not a valid URL"),
        ("http://a:b/w.h5", "not valid"),
        (f"http://{'a' * 70}/w.h5", "not valid"),
        ("ftp://host/weights.h5", "not a URL of a kind that can be fetched (http, https, file)"),
        ("C:\\weights.h5", "not a URL of a kind that can be fetched (http, https, file)"),
        ("/data/weights.h5", "for this file write file:///data/weights.h5"),
        ("file:///absent/w.h5", "file:///absent/w.h5: No such file or directory"),
        ("file:///tmp", "Is a directory"),
        ("file://otherhost/w.h5", "not a valid file URL"),
        ("file:///w%00.h5", "not a valid file URL"),
    ],
)
def test_an_address_that_cannot_be_fetched_is_final(part: Path, url: str, words: str, sleeps_s: list[float]) -> None:
    assert words in refusal(url, part)
    assert not sleeps_s
    assert not part.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is played by /dev/full")
def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(CONTENT)
    part = tmp_path / "part"
    part.symlink_to("/dev/full")  # a part is removed at times
    with serving(CONTENT) as server:
        for url in (server.url, (tmp_path / "weights.h5").as_uri()):
            with pytest.raises(OSError, match="No space left on device"):
                got(url, part)
    assert len(server.requests) == 1
