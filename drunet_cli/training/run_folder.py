"""Where a training leaves its files.

RUN/best.safetensors    weights of the best epoch, for `segment --weights`
RUN/last.safetensors    of the last one
RUN/state.safetensors   everything that --resume continues from
RUN/config.toml         every number of the recipe; --config reads it
RUN/split.json          which cases were learnt from and which held out; --split reads it
RUN/metrics.csv         one row an epoch, and cases.csv one for each held-out case of each
RUN/curves.png          loss and Dice, with the extra `plot`; tensorboard/ with that extra
RUN/run.json            cases, versions, device and command line of every session
RUN/slices/             the cases as slices, unless --slices-dir names another folder
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

import drunet_cli
from drunet_cli.errors import CaseError, OutputError
from drunet_cli.io.atomic import check_writable, remove_stale, write_atomically
from drunet_cli.training.cases import Split, read_split
from drunet_cli.training.recipe import Recipe, encoded, read_recipe

SCHEMA: Final = "drunet.training/1"


@dataclass(frozen=True)
class RunFolder:
    """One training's files."""

    root: Path

    @property
    def best(self) -> Path:
        """Weights of the best epoch."""
        return self.root / "best.safetensors"

    @property
    def last(self) -> Path:
        """Weights of the last epoch."""
        return self.root / "last.safetensors"

    @property
    def state(self) -> Path:
        """What --resume continues from."""
        return self.root / "state.safetensors"

    @property
    def config(self) -> Path:
        """The recipe."""
        return self.root / "config.toml"

    @property
    def split(self) -> Path:
        """Names of the cases."""
        return self.root / "split.json"

    @property
    def metrics(self) -> Path:
        """A row an epoch."""
        return self.root / "metrics.csv"

    @property
    def cases(self) -> Path:
        """A row for each held-out case of each epoch."""
        return self.root / "cases.csv"

    @property
    def curves(self) -> Path:
        """Picture of the history."""
        return self.root / "curves.png"

    @property
    def events(self) -> Path:
        """Folder of TensorBoard's files."""
        return self.root / "tensorboard"

    @property
    def document(self) -> Path:
        """Where everything came from."""
        return self.root / "run.json"

    @property
    def slices(self) -> Path:
        """The cases as slices."""
        return self.root / "slices"

    @property
    def _files(self) -> tuple[Path, ...]:
        return (*self._outputs, self.split, self.document, self.config)

    @property
    def _outputs(self) -> tuple[Path, ...]:
        """What is there once a training has begun."""
        return (self.state, self.best, self.last, self.metrics, self.cases, self.curves)

    @property
    def exists(self) -> bool:
        """Whether a training was begun here."""
        return os.path.lexists(self.config) and not self.was_begun_in_vain

    @property
    def was_begun_in_vain(self) -> bool:
        """Whether a training was killed here before there was anything to continue."""
        try:
            with self.config.open("rb") as stream:
                ours = stream.readline() == _CONFIG_HEAD.encode()
        except OSError:
            return False
        return ours and not any(os.path.lexists(path) for path in self._outputs)

    def check(self, *, overwrite: bool) -> None:
        """Raise OutputError now for what would stop the writing later."""
        for path in self._files:
            remove_stale(path)
            check_writable(path, overwrite=overwrite)

    def clear(self) -> None:
        """Take away an earlier training, but for its slices. Raises OutputError."""
        try:
            for path in self._files:
                path.unlink(missing_ok=True)
            if self.events.is_dir():
                for path in self.events.glob("events.out.tfevents.*"):
                    path.unlink()
        except OSError as error:
            raise OutputError(f"{error.filename}: cannot be removed: {error.strerror}") from error

    def begin(self, recipe: Recipe, split: Split) -> None:
        """Write what is settled; the state that follows says that there is a training. Raises OutputError."""
        _write(self.config, _CONFIG_HEAD.encode() + encoded(recipe).encode())
        _write(self.split, split.encoded())

    def read(self) -> tuple[Recipe, Split]:
        """The recipe and split of a training that was begun here. Raises CaseError or MisuseError where they are damaged."""
        names = _names_in(self.split)
        return read_recipe(self.config), read_split(self.split, names)

    def record_session(self, document: Mapping[str, Any]) -> None:
        """Add the beginning of a session to run.json. Raises OutputError."""
        sessions = [*self._sessions(), {"started": datetime.now(UTC).isoformat(timespec="seconds"), **document}]
        _write(self.document, json.dumps({"schema": SCHEMA, "sessions": sessions}, indent=2).encode() + b"\n")

    def check_same_cases(self, cases: Mapping[str, Mapping[str, str]]) -> None:
        """Raise CaseError where the session before learnt from other files. cases: SHA-256 of every file, by case and role."""
        earlier = self.cases_of_session()
        if changed := sorted(name for name, files in cases.items() if name in earlier and earlier[name] != files):
            raise CaseError(f"{changed[0]}: its files are not those that {self.root} was trained on until now; begin a new run")

    def cases_of_session(self) -> Mapping[str, Mapping[str, str]]:
        """SHA-256 of every file that the session before learnt from, by case and role; empty before the first."""
        sessions = self._sessions()
        return dict(sessions[-1]["cases"]) if sessions else {}

    def init_of_first_session(self) -> Mapping[str, str] | None:
        """Name, SHA-256 and licence of the weights that the training began with; None where it had none."""
        sessions = self._sessions()
        return sessions[0]["init"] if sessions else None

    def _sessions(self) -> Sequence[Any]:
        try:
            return list(json.loads(self.document.read_text(encoding="utf-8"))["sessions"])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CaseError(f"{self.document}: cannot be read, or is none of drunet's; move it away") from error


_CONFIG_HEAD: Final = "# Every number of this training. To train so again: drunet train CASES -o NEW_RUN --config THIS_FILE\n"


def versions(torch_version: str) -> dict[str, str]:
    """Of whatever may change a number."""
    return {
        "drunet": drunet_cli.__version__,
        "python": platform.python_version(),
        "torch": torch_version,
        "numpy": np.__version__,
    }


def _names_in(split: Path) -> list[str]:
    """All names that a split of our own holds."""
    try:
        document = json.loads(split.read_text(encoding="utf-8"))
        return [str(name) for part in ("train", "validation") for name in document[part]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CaseError(f"{split}: cannot be read, or is damaged; --overwrite begins anew") from error


def _write(path: Path, content: bytes) -> None:
    with write_atomically(path, overwrite=True) as stream:
        stream.write(content)
