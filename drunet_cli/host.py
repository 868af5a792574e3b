"""The machine: CPUs and memory that it grants, its processor and devices, and installed packages. Standard library only."""

import ctypes
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from importlib import util
from pathlib import Path
from typing import Final

from drunet_cli.errors import MisuseError

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_NO_LIMIT = 1 << 60  # bytes; cgroups of version 1 have 2^63 less a page where there is no limit
_AMD_DRIVER = Path("/dev/kfd")
_CUDA_ERROR_NO_DEVICE = 100
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?")
_M_ARENA_MAX = -8  # malloc.h of glibc


def granted_cpus(
    *, environment: Mapping[str, str] = os.environ, cgroup_root: Path = _CGROUP_ROOT, own_cgroups: Path = _OWN_CGROUPS
) -> int:
    """CPUs that this process may use: the least of `cpu_grants`; at least 1."""
    return max(1, min(cpu_grants(environment=environment, cgroup_root=cgroup_root, own_cgroups=own_cgroups).values()))


def cpu_grants(
    *, environment: Mapping[str, str] = os.environ, cgroup_root: Path = _CGROUP_ROOT, own_cgroups: Path = _OWN_CGROUPS
) -> dict[str, int]:
    """CPUs that each of these grants to the process: the affinity mask, Slurm and the cgroups' quotas, where they are set."""
    grants = {"affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1}
    slurm = environment.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdecimal():
        grants["Slurm"] = int(slurm)
    quotas = [cpus for folder in _cgroups("cpu", cgroup_root, own_cgroups) if (cpus := _quota(folder)) is not None]
    return {**grants, "cgroup": min(quotas)} if quotas else grants


def memory_grants(
    *,
    environment: Mapping[str, str] = os.environ,
    cgroup_root: Path = _CGROUP_ROOT,
    own_cgroups: Path = _OWN_CGROUPS,
    meminfo: Path = _MEMINFO,
) -> dict[str, int]:
    """Bytes of memory that the machine has, and that Slurm and the cgroups grant to the process, where they are known."""
    grants = {}
    if (total := _read_words(meminfo)[1:2]) and total[0].isdecimal():  # MemTotal: N kB
        grants["machine"] = int(total[0]) * 1024
    # MiB, for --mem or for --mem-per-cpu; 0 is all of the node. A Slurm that uses cgroups enforces the same by these.
    per_node, per_cpu, cpus = (environment.get(f"SLURM_{name}", "") for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"))
    if per_node.isdecimal() and per_node != "0":
        grants["Slurm"] = int(per_node) * 1024**2
    elif per_cpu.isdecimal() and per_cpu != "0" and cpus.isdecimal():
        grants["Slurm"] = int(per_cpu) * int(cpus) * 1024**2
    limits = [
        int(words[0])
        for folder in _cgroups("memory", cgroup_root, own_cgroups)
        for name in ("memory.max", "memory.limit_in_bytes")  # versions 2 and 1
        if (words := _read_words(folder / name)) and words[0].isdecimal() and int(words[0]) < _NO_LIMIT
    ]
    return {**grants, "cgroup": min(limits)} if limits else grants


def check_device_name(name: str) -> None:
    """Raise ValueError unless this is auto, cpu, cuda, cuda:N or mps; whether the device is there is not looked at."""
    if not _DEVICE.fullmatch(name):
        raise ValueError(f"{name!r} is none of auto, cpu, cuda, cuda:N, mps")


def missing_packages(packages: Sequence[str]) -> list[str]:
    """The Python packages that are not installed; nothing is imported."""
    specs = {package: util.find_spec(package) for package in packages}
    return [package for package, spec in specs.items() if spec is None or spec.origin is None]  # a mere folder has no origin


def check_installed(packages: Sequence[str], *, needed_by: str = "") -> None:
    """Raise MisuseError for packages that are not installed; nothing is imported. needed_by: the option that needs them."""
    if missing := missing_packages(packages):
        before = f"{needed_by}: " if needed_by else ""
        raise MisuseError(f"{before}{' and '.join(missing)} not installed; run: pip install {' '.join(missing)}")


def limit_openmp_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads wait for one another with less spinning; to be called before torch is imported.

    Two processes on the same two cores took 0.7 instead of 2.0 s a slice so, and one alone 0.35 instead of 0.32
    (tests/benchmarks/cpu.py). Acts on libgomp, which PyTorch brings on Linux. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "10000")


def limit_malloc_arenas() -> None:
    """Let all threads of this process take memory from two places, where glibc gives each its own, whose gaps add up.

    Ten cases over and over: the peak was 751 MiB after 5 cases and 793 after 50 without this, 652 and 667 with it
    (tests/benchmarks/cohort.py --long 50, base width 4, 2 CPUs). Nothing where the C library is another, or MALLOC_ARENA_MAX is
    set. Source: mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc" and "MALLOC_ARENA_MAX" not in os.environ:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of numpy, PyTorch, ONNX Runtime, OpenVINO or ITK says that memory did not suffice."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


# Allocators raise these words in a plain RuntimeError: PyTorch's for the CPU and GPUs, cuBLAS, and cuDNN, which finds no engine
# that fits; C++, ONNX Runtime and ITK; OpenVINO.
_OUT_OF_MEMORY_WORDS: Final = (
    *("can't allocate memory", "out of memory", "not enough memory", "ALLOC_FAILED", "could not create a primitive"),
    *("unable to find an engine", "Unable to find a valid cuDNN algorithm"),
    *("Failed to allocate memory", "bad allocation", "bad_alloc", "can't alloc"),
)


def disable_onnxruntime_telemetry(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let ONNX Runtime tell nobody of its use; to be called before it is imported. What the user has set stays.

    Since 1.29 its builds for Linux and macOS otherwise keep an identifier of the machine and a store of events in the user's
    cache folder, and send them to Microsoft (github.com/microsoft/onnxruntime, its page on privacy and pull request 27379).
    """
    environment.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _cgroups(controller: str, root: Path, own_cgroups: Path) -> Iterator[Path]:
    """Folders of the cgroups that hold this process, each with its ancestors: any of them may set a limit.

    controller: "cpu" or "memory", which have hierarchies of their own in version 1.
    """
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount = root
        elif controller in controllers.split(","):  # version 1
            mount = root / controllers
        else:
            continue
        folder = mount / path.lstrip("/")
        yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(mount)))
    yield from (root, root / controller)  # a container sees its own cgroup as the root, whatever the path above says


def _quota(folder: Path) -> int | None:
    """CPUs that the quota of one cgroup amounts to, rounded up; None where it sets none."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()  # version 1
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (quota.isdecimal() and period.isdecimal() and int(period) > 0):  # "max" in version 2, -1 in 1: no quota
        return None
    return max(1, math.ceil(int(quota) / int(period)))


def cpu_name() -> str:
    """The processor in words."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def has_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether the processor multiplies bfloat16 itself (AMX or AVX-512 BF16), as Linux tells; elsewhere nothing is known."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return bool({"amx_bf16", "avx512_bf16"} & set(flags))


def may_have_gpu(kernel_driver: Path = _AMD_DRIVER) -> bool:
    """Whether a driver, NVIDIA's or AMD's, shows this process a GPU, or reports a fault that somebody must hear of.

    NVIDIA's heeds CUDA_VISIBLE_DEVICES. Source: CUDA driver API, cuInit and cuDeviceGetCount.
    """
    if kernel_driver.exists():
        return True
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value > 0 if code == 0 else code != _CUDA_ERROR_NO_DEVICE
