"""The engines of the CPU that take the network as an ONNX graph: ONNX Runtime, and OpenVINO for bfloat16. Import no torch."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import ModuleType
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from drunet_cli.brats import ClassMap
from drunet_cli.errors import DeviceError, WeightsError
from drunet_cli.host import cpu_name, granted_cpus, is_out_of_memory
from drunet_cli.network.engine import EngineName, Images, Precision, ignore_progress
from drunet_cli.network.onnx_graph import build_graph, embed_weights
from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.structure import IMAGES

_HeadFunction: TypeAlias = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]

# With a slice of its own, no thread waits for another (tests/benchmarks/cpu.py), but each slice takes memory.
_MOST_AT_ONCE: Final = 4


class CpuEngine(ABC):
    """An Engine that computes `batch_size` slices side by side, but no more than there are threads.

    Each slice has a thread of its own; the threads that are left over help all of them.

    on_halved: called with the new batch size whenever memory did not suffice for the old one.
    """

    name: ClassVar[EngineName]
    precision: ClassVar[Precision]
    errors: ClassVar[tuple[type[Exception], ...]]
    """The exceptions of the library, for lack of memory among others."""

    device: Final = "cpu"

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
        self._open(checkpoint)

    def _open(self, checkpoint: Checkpoint) -> None:
        """Load the network. Raises DeviceError where memory does not suffice."""
        try:
            with np.errstate(over="ignore"):  # an output that is not finite is refused later
                self._load(checkpoint)
        except self.errors as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(error) from error

    @abstractmethod
    def _load(self, checkpoint: Checkpoint) -> None:
        """Make the library ready for `batch_size` calls of `logits` at once, with `threads` in all."""

    @abstractmethod
    def logits(self, images: Images) -> Images:
        """Logits [N, 4, X, Y] of images [N, 4, X, Y], which are slices divided by 255."""

    @abstractmethod
    def _interrupt(self) -> None:
        """End all calls of `logits` that are under way, which then raise."""

    @property
    def device_name(self) -> str:
        """The processor in words."""
        return cpu_name()

    @property
    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the software that computes."""

    def classes(self, slices: npt.NDArray[np.uint8], *, on_progress: Callable[[int], None] = ignore_progress) -> ClassMap:
        """Most probable class [N, X, Y] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        result = np.empty(slices.shape[:3], dtype=np.uint8)
        self._run(slices, lambda logits: logits.argmax(axis=0), result, on_progress)
        return result

    def probabilities(
        self,
        slices: npt.NDArray[np.uint8],
        *,
        on_progress: Callable[[int], None] = ignore_progress,
        dropout_seeds: Sequence[int] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Softmax probabilities [N, X, Y, 4] of slices [N, X, Y, 4]. Raises DeviceError when not even one slice fits."""
        assert dropout_seeds is None, "the graph has no dropout; choose_engine takes PyTorch for samples"
        result = np.empty(slices.shape, dtype=np.float32)
        self._run(slices, _softmax, result, on_progress)
        return result

    def _run(
        self, slices: npt.NDArray[np.uint8], head: _HeadFunction, result: npt.NDArray[Any], on_progress: Callable[[int], None]
    ) -> None:
        remaining = list(range(len(slices)))
        while True:
            runs: dict[int, Future[None]] = {}
            with ThreadPoolExecutor(self.batch_size, thread_name_prefix="drunet-engine") as pool:
                try:
                    for index in remaining:
                        runs[index] = pool.submit(self._forward, slices[index], head, result[index])
                    failed = self._wait(runs, on_progress)
                except BaseException:  # an interruption waits for no slice either
                    _cancel(runs)
                    self._interrupt()
                    raise
            if not failed:
                return
            if self.batch_size == 1:
                error = next(iter(failed.values()))
                raise _out_of_memory(error) from error
            self.batch_size //= 2
            self._on_halved(self.batch_size)
            remaining = [index for index, run in runs.items() if index in failed or run.cancelled()]

    def _forward(self, image: npt.NDArray[np.uint8], head: _HeadFunction, result: npt.NDArray[Any]) -> None:
        """One slice [X, Y, 4] through the network; the head takes its logits [4, X, Y]."""
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
        pixels /= 255
        logits = self.logits(pixels)
        if not np.isfinite(logits).all():  # else argmax would call it background
            raise WeightsError("the network's output is not finite; these weights are damaged")
        result[...] = head(logits[0])

    def _wait(self, runs: Mapping[int, Future[None]], on_progress: Callable[[int], None]) -> dict[int, Exception]:
        """Wait for slices; return by index those for which memory did not suffice, after which no other begins."""
        failed: dict[int, Exception] = {}
        for index, run in runs.items():
            try:
                run.result()
            except CancelledError:
                continue
            except self.errors as error:
                if not is_out_of_memory(error):
                    raise
                failed[index] = error
                _cancel(runs)
            else:
                on_progress(1)
        return failed


class OnnxEngine(CpuEngine):
    """ONNX Runtime in float32, which has the shortest start and needs the least memory."""

    name = EngineName.ONNXRUNTIME
    precision = Precision.FLOAT32
    errors = (MemoryError, ort_errors.Fail, ort_errors.RuntimeException)

    def _load(self, checkpoint: Checkpoint) -> None:
        graph = build_graph(checkpoint)
        options = ort.SessionOptions()
        # ONNX Runtime's pool belongs to the session: its threads but one, and those that call it, compute.
        options.intra_op_num_threads = self.threads - self.batch_size + 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes want the CPUs too
        options.log_severity_level = 4  # errors are raised, and need no line in the log
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()]
        options.add_external_initializers(list(graph.weights), values)
        self._how = ort.RunOptions()
        self._session = ort.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def logits(self, images: Images) -> Images:
        """Logits [N, 4, X, Y] of images [N, 4, X, Y], which are slices divided by 255."""
        (logits,) = self._session.run(None, {IMAGES: images}, self._how)
        return np.asarray(logits)

    def _interrupt(self) -> None:
        self._how.terminate, self._how = True, ort.RunOptions()

    @property
    def versions(self) -> dict[str, str]:
        """Version of ONNX Runtime."""
        return {"onnxruntime": ort.__version__}


def import_openvino() -> ModuleType:
    """OpenVINO, an extra, which a run in float32 does without. Raises ImportError."""
    import openvino

    module: ModuleType = openvino
    return module


@functools.cache
def _openvino_core() -> Any:
    """The one core of this process. Each has a stack for signals of its own; where several go, the next signal is a SIGSEGV."""
    return import_openvino().Core()


class OpenvinoEngine(CpuEngine):
    """OpenVINO in bfloat16, for processors that have it; elsewhere it would compute in float32, unasked."""

    name = EngineName.OPENVINO
    precision = Precision.BFLOAT16
    errors = (MemoryError, RuntimeError)

    def _load(self, checkpoint: Checkpoint) -> None:
        openvino = import_openvino()
        properties = openvino.properties
        how = {
            properties.inference_num_threads: self.threads,
            properties.num_streams: self.batch_size,
            properties.hint.inference_precision: openvino.Type.bf16,
            properties.hint.enable_hyper_threading: True,  # what counts are the threads that are granted
            properties.hint.enable_cpu_pinning: False,  # other processes may compute on the same CPUs
        }
        core = _openvino_core()
        network = core.read_model(embed_weights(build_graph(checkpoint)).SerializeToString())
        self._compiled = core.compile_model(network, "CPU", how)
        self._version = openvino.__version__.partition("-")[0]
        self._requests = [self._compiled.create_infer_request() for _ in range(self.batch_size)]
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for request in self._requests:
            self._idle.put(request)
        self._checkpoint, self._is_whole = checkpoint, True

    def _run(self, *arguments: Any) -> None:
        if not self._is_whole:
            self._open(self._checkpoint)
        super()._run(*arguments)

    def logits(self, images: Images) -> Images:
        """Logits [N, 4, X, Y] of images [N, 4, X, Y], which are slices divided by 255."""
        request = self._idle.get()
        try:
            request.start_async({IMAGES: images}, share_inputs=True)
            request.wait()
            logits: Images = request.get_output_tensor(0).data.copy()
        finally:
            self._idle.put(request)
        return logits

    def _interrupt(self) -> None:
        # After a request was cancelled, the network may give the slice before as the result of the next, also to new requests.
        self._is_whole = False
        for request in self._requests:
            request.cancel()

    @property
    def versions(self) -> dict[str, str]:
        """Version of OpenVINO."""
        return {"openvino": self._version}


def _cancel(runs: Mapping[int, Future[None]]) -> None:
    for run in runs.values():
        run.cancel()


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[4, X, Y] to probabilities [X, Y, 4]."""
    exponentials = np.exp(logits - logits.max(axis=0))
    return np.moveaxis(exponentials / exponentials.sum(axis=0), 0, 2)


def _out_of_memory(error: Exception) -> DeviceError:
    lines = [line for line in str(error).splitlines() if is_out_of_memory(RuntimeError(line))]
    reason = lines[0] if lines else "MemoryError"
    return DeviceError(f"device cpu: memory does not suffice for the network and one slice ({reason})")
