"""Everything that the next step depends on, in one file: a run that continues from it does what it would have done."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from drunet_cli.errors import WeightsError
from drunet_cli.io.atomic import write_atomically
from drunet_cli.training.history import History, history_of
from drunet_cli.training.learner import Learner

SCHEMA: Final = "drunet.training-state/1"
_METADATA_KEY: Final = "drunet"


@dataclass(kw_only=True)
class Progress:
    """Where a training is. step: the next one. losses: sum over the n_losses steps of the running epoch.

    seconds, waited_s: that the running epoch has taken, and of these, waited for slices. n_steps: of the whole training.
    """

    n_steps: int
    step: int = 0
    losses: float = 0.0
    n_losses: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    history: History = field(default_factory=History)


def write_state(path: Path, learner: Learner, progress: Progress) -> None:
    """Write it, complete or not at all. Raises OutputError."""
    document = {
        "schema": SCHEMA,
        "n_steps": progress.n_steps,
        "step": progress.step,
        "losses": progress.losses,
        "n_losses": progress.n_losses,
        "seconds": progress.seconds,
        "waited_s": progress.waited_s,
        "scaler": learner.scaler.state_dict(),
        "history": progress.history.as_json(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(learner).items()}
    content = safetensors.torch.save(tensors, {_METADATA_KEY: json.dumps(document)})
    with write_atomically(path, overwrite=True) as stream:
        stream.write(content)


def read_state(path: Path, learner: Learner) -> Progress:
    """Bring a learner of the same recipe to where the file's was. Raises WeightsError for a file that is not one's of it."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
        if document["schema"] != SCHEMA:
            raise WeightsError(f"{path}: is of schema {document['schema']!r}; this version reads {SCHEMA!r}")
        progress = Progress(
            n_steps=int(document["n_steps"]),
            step=int(document["step"]),
            losses=float(document["losses"]),
            n_losses=int(document["n_losses"]),
            seconds=float(document["seconds"]),
            waited_s=float(document["waited_s"]),
            history=history_of(document["history"]),
        )
        _load(learner, tensors, document["scaler"], has_stepped=progress.step > 0)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; there is nothing to continue") from error
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise WeightsError(f"{path}: is damaged, or the state of another training: {error}") from error
    return progress


def _tensors(learner: Learner) -> dict[str, Tensor]:
    network = {f"network.{name}": tensor for name, tensor in learner.network.state_dict().items()}
    averages = {f"average.{name}": tensor for name, tensor in learner.averages.items()}
    optimiser = {
        f"optimiser.{index}.{name}": value
        for index, of_parameter in learner.optimiser.state_dict()["state"].items()
        for name, value in of_parameter.items()
    }
    return network | averages | optimiser


def _load(learner: Learner, tensors: Mapping[str, Tensor], scaler: Mapping[str, Any], *, has_stepped: bool) -> None:
    """Raises LookupError, RuntimeError or ValueError where a tensor is missing or of another shape."""
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
    if len(state) != (n_parameters if has_stepped else 0) or len({frozenset(of_one) for of_one in state.values()}) > 1:
        raise ValueError("the optimiser's numbers are incomplete")
    learner.optimiser.load_state_dict({"state": state, "param_groups": learner.optimiser.state_dict()["param_groups"]})
    if scaler:  # empty where the earlier session did not train in float16
        learner.scaler.load_state_dict(dict(scaler))


def _optimiser_state(learner: Learner, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    parameters = [parameter for group in learner.optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind != "optimiser":
            continue
        index, _, name = rest.partition(".")
        like = parameters[int(index)]
        # In the parameter's own memory format, so that the next step runs the same code as it would have.
        value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[name] = value
    return state
