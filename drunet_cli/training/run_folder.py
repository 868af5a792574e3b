"""The files of a training, and the state from which it continues.

RUN/best.safetensors    weights of the best epoch, for `segment --weights`
RUN/last.safetensors    weights of the last epoch
RUN/state.safetensors   everything that --resume continues from
RUN/config.toml         every number of the recipe; --config reads it
RUN/split.json          the cases to learn from and the held-out cases; --split reads it
RUN/metrics.csv         one row for each epoch
RUN/cases.csv           one row for each held-out case of each epoch
RUN/curves.png          loss and Dice, with the extra `plot`
RUN/tensorboard/        the same for TensorBoard, with the extra `tensorboard`
RUN/run.json            versions, device and command line of every session; SHA-256 of the cases
RUN/slices/             the cases as slices, unless --slices-dir names another folder
"""

import functools
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import safetensors
from pydantic import TypeAdapter, ValidationError

import drunet_cli
from drunet_cli.errors import CaseError, OutputError, WeightsError, fault_in_words
from drunet_cli.io.atomic import check_writable, publish, remove_stale
from drunet_cli.training.cases import Split, read_split
from drunet_cli.training.history import History
from drunet_cli.training.recipe import Recipe, read_recipe, recipe_toml

if TYPE_CHECKING:
    from torch import Tensor

    from drunet_cli.training.learner import Learner

RUN_SCHEMA: Final = "drunet.training/1"
STATE_SCHEMA: Final = "drunet.training-state/1"
_STATE_KEY: Final = "drunet"
FOLDS_FILE: Final = "folds.json"  # of the folder of a cross-validation, in which each fold has a run folder
_CONFIG_HEAD: Final = "# Every number of this training. To train so again: drunet train CASES -o NEW_RUN --config THIS_FILE\n"


class RunFolder:
    """The folder of one training; the head of this module says what its files are."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.best = root / "best.safetensors"
        self.last = root / "last.safetensors"
        self.state = root / "state.safetensors"
        self.config = root / "config.toml"
        self.split = root / "split.json"
        self.metrics = root / "metrics.csv"
        self.cases = root / "cases.csv"
        self.curves = root / "curves.png"
        self.events = root / "tensorboard"
        self.document = root / "run.json"
        self.slices = root / "slices"
        self._outputs = (self.state, self.best, self.last, self.metrics, self.cases, self.curves)
        self._files = (*self._outputs, self.split, self.document, self.config)

    @property
    def name(self) -> str:
        """The name of the weights: the folder's; for a fold, with the name of its cross-validation before."""
        folder = self.root.absolute()
        return f"{folder.parent.name}_{folder.name}" if (folder.parent / FOLDS_FILE).is_file() else folder.name

    @property
    def exists(self) -> bool:
        """Whether the folder holds a training."""
        return os.path.lexists(self.config) and not self.is_abandoned

    @property
    def is_abandoned(self) -> bool:
        """Whether a training of drunet was killed here before its first state was written: there is nothing to continue."""
        try:
            with self.config.open("rb") as stream:
                ours = stream.readline() == _CONFIG_HEAD.encode()
        except OSError:
            return False
        return ours and not any(os.path.lexists(path) for path in self._outputs)

    @property
    def is_finished(self) -> bool:
        """Whether the training has come to its end. Raises WeightsError for a damaged state."""
        if not self.exists:
            return False
        try:
            with safetensors.safe_open(self.state, framework="numpy") as file:
                state, _ = _parsed_state(file, self.state)
            return any(epoch.step == state.n_steps for epoch in state.history.epochs)
        except (OSError, safetensors.SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise WeightsError(f"{self.state}: is damaged, or no state of a training: {error}; begin it anew") from error

    def check_writable(self, *, overwrite: bool) -> None:
        """Raise OutputError now for faults that would stop the writing later."""
        for path in self._files:
            check_writable(path, overwrite=overwrite)

    def remove_stale(self) -> None:
        """Remove the temporary files that killed sessions have left."""
        for path in self._files:
            remove_stale(path)

    def clear(self) -> None:
        """Remove the files of an earlier training, except its slices. Raises OutputError."""
        try:
            for path in self._files:
                path.unlink(missing_ok=True)
            if self.events.is_dir():
                for path in self.events.glob("events.out.tfevents.*"):
                    path.unlink()
        except OSError as error:
            raise OutputError(f"{error.filename}: cannot be removed: {error.strerror}") from error

    def begin(self, recipe: Recipe, split: Split) -> None:
        """Write recipe and split; the first state, which follows, makes the folder a training. Raises OutputError."""
        publish(self.config, _CONFIG_HEAD.encode() + recipe_toml(recipe).encode(), overwrite=True)
        publish(self.split, split.as_json(), overwrite=True)

    def read(self) -> tuple[Recipe, Split]:
        """Read the recipe and the split of the training. Raises CaseError or MisuseError for a damaged file."""
        try:
            document = json.loads(self.split.read_text(encoding="utf-8"))
            names = [str(name) for part in ("train", "validation") for name in document[part]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CaseError(f"{self.split}: cannot be read, or is damaged; --overwrite begins anew") from error
        return read_recipe(self.config), read_split(self.split, names)

    def record_session(self, document: Mapping[str, Any]) -> None:
        """Add the beginning of a session to run.json, with the versions of all that may change a number. Raises OutputError.

        Every session learns from the same cases, so that the last one alone keeps their checksums.
        """
        import torch

        versions = {
            "drunet": drunet_cli.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        session = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **document, "versions": versions}
        earlier = [{**before, "cases": {}} for before in self._sessions()]
        content = {"schema": RUN_SCHEMA, "sessions": [*earlier, session]}
        publish(self.document, json.dumps(content, indent=2).encode() + b"\n", overwrite=True)

    def cases_of_last_session(self) -> Mapping[str, Mapping[str, str]]:
        """SHA-256 of every file that the last session learnt from, by case and role; empty before the first session."""
        sessions = self._sessions()
        return dict(sessions[-1]["cases"]) if sessions else {}

    def init_of_first_session(self) -> Mapping[str, str] | None:
        """Name, SHA-256 and licence of the weights that the training began with; None where it began with new ones."""
        sessions = self._sessions()
        return sessions[0]["init"] if sessions else None

    def _sessions(self) -> list[Any]:
        try:
            sessions = json.loads(self.document.read_text(encoding="utf-8"))["sessions"]
            _sessions_reader().validate_python(sessions)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CaseError(f"{self.document}: cannot be read, or is none of drunet's; move it away") from error
        return list(sessions)


@dataclass(frozen=True)
class _Session:
    """The part of a session's record that later sessions read."""

    cases: Mapping[str, Mapping[str, str]]
    init: Mapping[str, str] | None


@functools.cache
def _sessions_reader() -> TypeAdapter[list[_Session]]:
    return TypeAdapter(list[_Session])


@dataclass(kw_only=True)
class TrainingState:
    """How far a training is, as its state on the disk keeps it.

    step: number of steps that are done, out of n_steps. losses: sum over the n_losses steps of the running epoch.
    seconds: duration of the running epoch so far. waited_s: how much of it the device waited for slices.
    """

    n_steps: int
    step: int = 0
    losses: float = 0.0
    n_losses: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    history: History = field(default_factory=History)


def write_state(path: Path, learner: "Learner", state: TrainingState) -> None:
    """Write everything that the next step depends on into one file. Raises OutputError."""
    import safetensors.torch

    fields = asdict(state)
    epochs = fields.pop("history")["epochs"]
    document = {"schema": STATE_SCHEMA, **fields, "scaler": learner.scaler.state_dict(), "history": epochs}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors_of(learner).items()}
    publish(path, safetensors.torch.save(tensors, {_STATE_KEY: json.dumps(document)}), overwrite=True)


def read_state(path: Path, learner: "Learner") -> TrainingState:
    """Load a state into a learner of the same recipe: its next step is the one that would have followed.

    Raises WeightsError for a file that is absent, damaged, or the state of another training.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state, scaler = _parsed_state(file, path)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
        _load(learner, tensors, scaler, has_stepped=state.step > 0)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; there is nothing to continue") from error
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise WeightsError(f"{path}: is damaged, or the state of another training: {error}") from error
    return state


def _parsed_state(file: Any, path: Path) -> tuple[TrainingState, Mapping[str, Any]]:
    """Return the state of an open file, and that of the scaler. Raises LookupError, TypeError or ValueError for damage."""
    document = json.loads((file.metadata() or {})[_STATE_KEY])
    if document["schema"] != STATE_SCHEMA:
        raise WeightsError(f"{path}: is of schema {document['schema']!r}; this version reads {STATE_SCHEMA!r}")
    try:
        state = _state_reader().validate_python({**document, "history": {"epochs": document["history"]}})
    except ValidationError as error:
        raise ValueError(fault_in_words(error.errors()[0])) from error
    return state, document["scaler"]


@functools.cache
def _state_reader() -> TypeAdapter[TrainingState]:
    return TypeAdapter(TrainingState)


def _tensors_of(learner: "Learner") -> "dict[str, Tensor]":
    network = {f"network.{name}": tensor for name, tensor in learner.network.state_dict().items()}
    averages = {f"average.{name}": tensor for name, tensor in learner.averages.items()}
    optimiser = {
        f"optimiser.{index}.{name}": value
        for index, values in learner.optimiser.state_dict()["state"].items()
        for name, value in values.items()
    }
    return network | averages | optimiser


def _load(learner: "Learner", tensors: "Mapping[str, Tensor]", scaler: Mapping[str, Any], *, has_stepped: bool) -> None:
    """Copy the tensors into the learner. Raises LookupError, RuntimeError or ValueError for missing ones and other shapes."""
    import torch

    current: Mapping[str, Tensor] = learner.network.state_dict()
    with torch.no_grad():
        for kind, own in (("network", current), ("average", learner.averages)):
            for name, tensor in own.items():
                stored = tensors[f"{kind}.{name}"]
                if stored.shape != tensor.shape:  # copy_ would repeat a smaller one
                    raise ValueError(f"tensor {kind}.{name} has shape {tuple(stored.shape)}, not {tuple(tensor.shape)}")
                tensor.copy_(stored)
    state = _optimiser_state(learner, tensors)
    n_parameters = sum(1 for _ in learner.network.parameters())
    if len(state) != (n_parameters if has_stepped else 0) or len({frozenset(values) for values in state.values()}) > 1:
        raise ValueError("the optimiser's numbers are incomplete")
    learner.optimiser.load_state_dict({"state": state, "param_groups": learner.optimiser.state_dict()["param_groups"]})
    if scaler:  # empty where the earlier session did not train in float16
        learner.scaler.load_state_dict(dict(scaler))


def _optimiser_state(learner: "Learner", tensors: "Mapping[str, Tensor]") -> "dict[int, dict[str, Tensor]]":
    import torch

    parameters = [parameter for group in learner.optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind != "optimiser":
            continue
        index, _, name = rest.partition(".")
        like = parameters[int(index)]
        # In the memory format of the parameter, so that the next step runs the same code as it would have.
        value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[name] = value
    return state
