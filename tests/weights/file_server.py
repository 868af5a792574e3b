"""A web server on 127.0.0.1 that gives out one file, well or badly, and keeps what it was asked."""

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

VERSION: Final = '"1"'


@dataclass(frozen=True)
class Answer:
    """How one request is answered; as it stands: with the file, or the range of it that is asked for.

    status: in place of 200, 206 or 416, with `body` in place of the file.
    ranges: False ignores Range; if_range: False ignores If-Range and goes on with whatever the file is by now.
    etag: None sends none. headers: added, or in place of what would be sent; a value "" leaves the header out.
    cut_after: bytes of the body after which the connection is closed. chunked: no Content-Length.
    raw: in place of the whole answer, status line and all.
    silence_s: before the answer begins. pause_s: after each block of `block` bytes.
    """

    status: int | None = None
    body: bytes | None = None
    etag: str | None = VERSION
    headers: Mapping[str, str] = field(default_factory=dict)
    ranges: bool = True
    if_range: bool = True
    cut_after: int | None = None
    chunked: bool = False
    raw: bytes | None = None
    silence_s: float = 0.0
    pause_s: float = 0.0
    block: int = 64 * 1024


@dataclass(frozen=True)
class Request:
    """A request as it came; path: with the query, and a whole URL where the server is used as a proxy."""

    path: str
    headers: Mapping[str, str]


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for the answers under way
    request_queue_size = 64  # many processes may knock at once


class FileServer:
    """Answers with those of `script` in turn, one a request whatever its path, and with `default` from then on."""

    def __init__(self, content: bytes, script: tuple[Answer, ...], default: Answer) -> None:
        self.content = content
        self.default = default
        self.requests: list[Request] = []
        self._script = list(script)
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}/weights.h5"

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [request.headers.get("Range") for request in self.requests]

    def next_answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            return self._script.pop(0) if self._script else self.default

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@contextmanager
def serving(content: bytes, *script: Answer, default: Answer = Answer()) -> Iterator[FileServer]:
    """Give out `content` at `url`, to any number of processes at once, until the block ends."""
    server = FileServer(content, script, default)
    with server.running():
        yield server


def _handler_of(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            request = Request(self.path, dict(self.headers))
            answer = server.next_answer(request)
            time.sleep(answer.silence_s)
            status, headers, body = _composed(answer, server.content, request.headers)
            try:
                if answer.raw is not None:
                    self.wfile.write(answer.raw)
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self._send(body, answer)
            except ConnectionError:  # the client has gone, which it may
                pass
            finally:
                self.close_connection = True

        def _send(self, body: bytes, answer: Answer) -> None:
            sent = body[: answer.cut_after]
            for start in range(0, len(sent), answer.block):
                block = sent[start : start + answer.block]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if answer.chunked else block)
                time.sleep(answer.pause_s)
            if answer.chunked and answer.cut_after is None:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _composed(answer: Answer, content: bytes, asked: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
    status, body = answer.status or 200, content if answer.body is None else answer.body
    headers = {"Content-Type": "application/octet-stream", "Connection": "close"}
    if answer.etag is not None:
        headers["ETag"] = answer.etag
    found = re.fullmatch(r"bytes=(\d+)-", asked.get("Range", ""))
    same = not answer.if_range or asked.get("If-Range") in (None, answer.etag)
    if found and same and answer.ranges and answer.status is None and answer.body is None:
        start = int(found[1])
        if start < len(body):
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[start:]
        else:
            headers["Content-Range"] = f"bytes */{len(body)}"
            status, body = 416, b""
    if answer.chunked:
        headers["Transfer-Encoding"] = "chunked"
    else:
        headers["Content-Length"] = str(len(body))
    headers.update(answer.headers)
    return status, {name: value for name, value in headers.items() if value}, body
