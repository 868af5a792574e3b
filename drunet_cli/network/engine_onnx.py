"""The network in ONNX Runtime, on the CPU in float32. Imports no torch, which takes longer than this whole engine's start."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from drunet_cli.brats import ClassMap
from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.host import cpu_name, granted_cpus
from drunet_cli.network.engine import EngineName, Precision, ignore_progress
from drunet_cli.network.graph import INPUT, build_graph
from drunet_cli.weights.checkpoint import Checkpoint

Head: TypeAlias = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]

# A slice for each thread saves them waiting for one another (tests/benchmarks/cpu.py), but takes memory for each.
_MOST_AT_ONCE: Final = 4
_RUNTIME_ERRORS: Final = (MemoryError, ort_errors.Fail, ort_errors.RuntimeException)
_OUT_OF_MEMORY_WORDS: Final = ("Failed to allocate memory", "bad allocation", "bad_alloc")


class OnnxEngine:
    """An Engine that computes slices side by side: `batch_size` of them, but no more than there are threads.

    Each has a thread of its own; those that are left over help all of them.

    on_halved: called with the new batch size whenever memory did not suffice for the old one.
    """

    name: Final = EngineName.ONNXRUNTIME
    device: Final = "cpu"
    precision: Final = Precision.FLOAT32

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        batch_size: int | None = None,
        threads: int | None = None,
        on_halved: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.threads = threads or granted_cpus()
        self.batch_size = min(self.threads, batch_size or _MOST_AT_ONCE)
        self._on_halved = on_halved
        with np.errstate(over="ignore"):  # told when the output is not finite
            graph = build_graph(checkpoint)
        options = ort.SessionOptions()
        # ONNX Runtime's pool belongs to the session: its threads but one, and those that call it, compute.
        options.intra_op_num_threads = self.threads - self.batch_size + 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes want the CPUs too
        options.log_severity_level = 4  # what goes wrong is raised too
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()]
        options.add_external_initializers(list(graph.weights), values)
        try:
            self._session = ort.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except _RUNTIME_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(error) from error

    @property
    def device_name(self) -> str:
        """The processor in words."""
        return cpu_name()

    @property
    def versions(self) -> dict[str, str]:
        """Of the software that computes."""
        return {"onnxruntime": ort.__version__}

    def classes(self, slices: npt.NDArray[np.uint8], *, on_done: Callable[[int], None] = ignore_progress) -> ClassMap:
        """Most probable class [N, X, Y] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape[:3], dtype=np.uint8)
        self._run(slices, lambda logits: logits.argmax(axis=0), result, on_done)
        return result

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_done: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        assert dropout_seeds is None, "the graph has no dropout; choose_engine takes PyTorch for samples"
        result = np.empty(slices.shape, dtype=np.float32)
        self._run(slices, _softmax, result, on_done)
        return result

    def _run(self, slices: npt.NDArray[np.uint8], head: Head, result: npt.NDArray[Any], on_done: Callable[[int], None]) -> None:
        remaining = list(range(len(slices)))
        while True:
            how = ort.RunOptions()
            runs: dict[int, Future[None]] = {}
            with ThreadPoolExecutor(self.batch_size, thread_name_prefix="drunet-engine") as pool:
                try:
                    for index in remaining:
                        runs[index] = pool.submit(self._forward, slices[index], head, result[index], how)
                    failed = _wait(runs, on_done)
                except BaseException:  # an interruption, too, waits for no slice
                    how.terminate = True
                    raise
                finally:
                    _cancel(runs)
            if not failed:
                return
            if self.batch_size == 1:
                error = next(iter(failed.values()))
                raise _out_of_memory(error) from error
            self.batch_size //= 2
            self._on_halved(self.batch_size)
            remaining = [index for index, run in runs.items() if index in failed or run.cancelled()]

    def _forward(self, image: npt.NDArray[np.uint8], head: Head, result: npt.NDArray[Any], how: "ort.RunOptions") -> None:
        """One slice [X, Y, 4] through the network; the head takes its logits [4, X, Y]."""
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
        pixels /= 255
        (logits,) = self._session.run(None, {INPUT: pixels}, how)
        if not np.isfinite(logits).all():  # else argmax would call it background
            raise WeightsError("the network's output is not finite; these weights are damaged")
        result[...] = head(logits[0])


def _wait(runs: Mapping[int, Future[None]], on_done: Callable[[int], None]) -> dict[int, Exception]:
    """Wait for slices, by index; return those for which memory did not suffice, after which no other begins."""
    failed: dict[int, Exception] = {}
    for index, run in runs.items():
        try:
            run.result()
        except CancelledError:
            continue
        except _RUNTIME_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            failed[index] = error
            _cancel(runs)
        else:
            on_done(1)
    return failed


def _cancel(runs: Mapping[int, Future[None]]) -> None:
    for run in runs.values():
        run.cancel()


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[4, X, Y] to probabilities [X, Y, 4]."""
    exponentials = np.exp(logits - logits.max(axis=0))
    return np.moveaxis(exponentials / exponentials.sum(axis=0), 0, 2)


def is_out_of_memory(error: Exception) -> bool:
    """Whether this, of ONNX Runtime or numpy, says that memory did not suffice."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def _out_of_memory(error: Exception) -> DeviceError:
    first_line = str(error).split("\n")[0]
    return DeviceError(f"device cpu: memory does not suffice for the network and one slice ({first_line})")
