"""drunet in processes of its own that are forks of one which has imported what most commands need.

An interpreter takes a second of CPU time before drunet does anything, a fork some hundredths. What happens before the command
line is parsed is tried with interpreters.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

ROOT: Final = Path(__file__).parents[1]
STREAMS: Final = ("stdin", "stdout", "stderr")
PATIENCE_S: Final = 240.0  # a run takes a second; a busy machine takes longer
CLOSED_PIPE: Final = "a pipe that nobody reads"  # in place of a device


@dataclass(frozen=True)
class Done:
    """A run that has ended. returncode: below 0 by a signal."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Strike:
    """A signal that a process sends itself when Python first reports an event (see sys.audit) about a certain thing."""

    number: int
    event: str
    about: str


class Run:
    """A run under way."""

    def __init__(self, server: "subprocess.Popen[str]", order: Mapping[str, Any]) -> None:
        self._server, self._streams = server, order["streams"]
        assert server.stdin is not None
        server.stdin.write(f"{json.dumps(order)}\n")
        server.stdin.flush()
        self.pid = int(self._answer(PATIENCE_S))
        self._done: Done | None = None

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def written(self, name: str) -> str:
        """What has been written to stdout or stderr until now, unless to a device."""
        path = Path(self._streams[name])
        return os.fsdecode(path.read_bytes()) if path.is_file() else ""

    def wait(self, timeout: float = PATIENCE_S) -> Done:
        """Wait for the end."""
        if self._done is None:
            code, seconds, peak_bytes = json.loads(self._answer(timeout))
            self._done = Done(code, self.written("stdout"), self.written("stderr"), seconds, peak_bytes)
        return self._done

    def _answer(self, timeout: float) -> str:
        assert self._server.stdout is not None
        assert select.select([self._server.stdout], [], [], timeout)[0], f"no end after {timeout} s\n{self.written('stderr')}"
        return self._server.stdout.readline()


class Forks:
    """Servers, each of which forks one run at a time; there are as many as have run at once."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[str]] = []

    @contextmanager
    def started(
        self,
        *words: str | Path,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        strike: Strike | None = None,
        streams: Mapping[str, str] | None = None,
        before: str = "",
    ) -> Iterator[Run]:
        """drunet in a folder, ended with the block at the latest.

        streams: devices in place of the files from which stdout and stderr are read.
        before: Python that the process runs first.
        """
        server = self._idle.pop() if self._idle else _server()
        with tempfile.TemporaryDirectory() as own:
            order = {
                "words": [str(word) for word in words],
                "folder": str(folder),
                "environment": {**os.environ, **(environment or {})},
                "strike": None if strike is None else [strike.number, strike.event, strike.about],
                "before": before,
                "streams": {**{name: f"{own}/{name}" for name in STREAMS}, **(streams or {})},
            }
            run = Run(server, order)
            try:
                yield run
            finally:
                run.send_signal(signal.SIGKILL)
                run.wait()
                self._idle.append(server)

    def run(self, *words: str | Path, timeout: float = PATIENCE_S, **options: Any) -> Done:
        """Start drunet and wait for its end. options: those of `started`."""
        with self.started(*words, **options) as run:
            return run.wait(timeout)

    def warm(self, n: int) -> None:
        """Have so many servers ready, so that as many runs begin at once."""
        with ExitStack() as stack:
            for _ in range(n):
                stack.enter_context(self.started("--version", folder=ROOT))

    def close(self) -> None:
        for server in self._idle:
            server.communicate()


def _server() -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.forks"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def serve() -> None:
    """Fork a process for each order, an object a line; tell its number, and at its end the code, seconds and peak memory."""
    import h5py  # noqa: F401
    from scipy import ndimage  # noqa: F401

    from drunet_cli.cli import app
    from drunet_cli.conversion import nii2png, png2nii  # noqa: F401
    from drunet_cli.network import cpu_engine  # noqa: F401
    from drunet_cli.segmentation import cohort  # noqa: F401
    from drunet_cli.weights import cache  # noqa: F401

    for name in app.COMMANDS:
        import_module(f"drunet_cli.cli.{name}")
    gc.freeze()  # what forks share is not looked through again by each
    for line in sys.stdin:
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        print(child, flush=True)
        _, status, usage = os.wait4(child, 0)
        peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - begin, peak_bytes]), flush=True)


def _become(order: Mapping[str, Any]) -> NoReturn:
    from drunet_cli.__main__ import run

    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    for number, (name, mode) in enumerate(zip(STREAMS, "rww", strict=True)):
        descriptor = _opened(order["streams"][name])
        os.dup2(descriptor, number)
        os.close(descriptor)
        stream = open(number, mode, buffering=1, closefd=False)  # noqa: SIM115  # stays open
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["drunet", *order["words"]]
    if order["strike"] is not None:
        _arm(*order["strike"])
    exec(order["before"], {})
    sys.exit = _exit  # the threads of ONNX Runtime, which only the server has, would be waited for
    run()


def _opened(path: str) -> int:
    if path != CLOSED_PIPE:
        return os.open(path, os.O_RDWR | os.O_CREAT)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def _exit(code: str | int | None = None) -> NoReturn:
    assert isinstance(code, int)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _arm(number: int, wanted: str, about: str) -> None:
    strikes = [number]

    def strike(event: str, arguments: Sequence[object]) -> None:
        if event == wanted and about in str(arguments[0]) and strikes:
            os.kill(os.getpid(), strikes.pop())

    sys.addaudithook(strike)


def limit_files(n_bytes: int, *, signal_ignored: bool) -> str:
    """Python that lets no file grow beyond so many bytes: writing fails as on a full disk, or the system kills the process.

    Python itself would cut its files of compiled modules short, and every later process that imports them would fail.
    """
    import resource  # Windows has no such module, and kills no writer

    action = signal.SIG_IGN if signal_ignored else signal.SIG_DFL
    return (
        "import sys; sys.dont_write_bytecode = True;"
        f"import resource, signal; signal.signal(signal.SIGXFSZ, {int(action)});"
        f"resource.setrlimit({resource.RLIMIT_FSIZE}, ({n_bytes}, {n_bytes}))"
    )


if __name__ == "__main__":
    serve()
