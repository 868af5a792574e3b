"""How PyTorch is to compute. It has no such switches but the whole process', which are put back after use."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch

_lock: Final = threading.Lock()
_undo: Final = ExitStack()
_n_inside = 0


@contextmanager
def exact_arithmetic(*, deterministic: bool = False) -> Iterator[None]:
    """Let float32 mean it meanwhile: cuDNN would otherwise round the inputs of convolutions to TF32's ten bits.

    deterministic: also forbid whatever may give other bytes from run to run; else that is as it was. For any number of threads
    at once: the switches are put back when the last leaves, so that none finds them changed in the midst of its work.
    """
    _enter(deterministic=deterministic)
    try:
        yield
    finally:
        _leave()


def _enter(*, deterministic: bool) -> None:
    global _n_inside
    owner, name, off = _tf32_switch()
    with _lock:
        if _n_inside == 0:
            _undo.callback(setattr, owner, name, getattr(owner, name))
            _undo.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            _undo.callback(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            )
        _n_inside += 1
        setattr(owner, name, off)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without which PyTorch refuses cuBLAS
            torch.backends.cudnn.benchmark = False  # which chooses algorithms by the clock
            torch.use_deterministic_algorithms(True)


def _leave() -> None:
    global _n_inside
    with _lock:
        _n_inside -= 1
        if _n_inside == 0:
            _undo.close()


def _tf32_switch() -> tuple[Any, str, object]:
    """Where the switch of cuDNN's convolutions is, and its value for float32 as it is."""
    if hasattr(torch.backends.cudnn, "conv"):  # since torch 2.9, where the older switch warns
        return torch.backends.cudnn.conv, "fp32_precision", "ieee"
    return torch.backends.cudnn, "allow_tf32", False
