"""How many CPUs and how much memory a process may use, in cgroup folders of the test's own making."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.host import (
    cpu_name,
    disable_onnxruntime_telemetry,
    granted_cpus,
    has_bfloat16,
    limit_openmp_spinning,
    memory_grants,
)

N_AFFINITY: Final = 64


@pytest.fixture(autouse=True)
def _machine_with_64_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(N_AFFINITY)), raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def cpus(root: Path, own_cgroups: str = "", *, slurm: str | None = None) -> int:
    """What is granted under these cgroup folders, where /proc/self/cgroup reads `own_cgroups`."""
    root.mkdir(exist_ok=True)
    listing = root.parent / "self"
    listing.write_text(own_cgroups)
    environment = {} if slurm is None else {"SLURM_CPUS_PER_TASK": slurm}
    return granted_cpus(environment=environment, cgroup_root=root, own_cgroups=listing)


def test_missing_cgroup_files_set_no_limit(tmp_path: Path) -> None:
    assert granted_cpus(environment={}, cgroup_root=tmp_path / "no", own_cgroups=tmp_path / "none") == N_AFFINITY


@pytest.mark.parametrize(("counted", "expected"), [(12, 12), (None, 1)])
def test_a_system_without_affinity_counts_its_cpus(
    root: Path, monkeypatch: pytest.MonkeyPatch, counted: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: counted)
    assert cpus(root) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_processs_own_affinity_mask_is_read() -> None:
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from drunet_cli.host import granted_cpus; "
    command = [sys.executable, "-c", one + "print(granted_cpus(environment={}))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"


def test_the_real_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert granted_cpus(cgroup_root=tmp_path, own_cgroups=tmp_path / "none") == 1


JOB: Final = "0::/job\n"  # the process's own cgroup, of version 2
STEP: Final = "0::/slurm/job_7/step_0\n"
JOB_7: Final = "7:memory:/else\n4:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/else\n"  # of version 1
# SLURM's variable, the process's cgroups, quotas by folder (one word: of version 1, else of version 2), and the CPUs.
GRANTS: Final[list[tuple[str | None, str, dict[str, str], int]]] = [
    # affinity alone, and SLURM's variable or rubbish in it
    (None, "", {}, N_AFFINITY),
    ("6", "", {}, 6),
    ("0", "", {}, 1),
    *((rubbish, "", {}, N_AFFINITY) for rubbish in ("", "many", "-3", "2.5", "²")),
    # a quota of version 2 is rounded up; a file without one sets no limit
    (None, JOB, {"job": "400000 100000"}, 4),
    (None, JOB, {"job": "250000 100000"}, 3),
    (None, JOB, {"job": "1 100000"}, 1),
    (None, JOB, {"job": "8000 1000"}, 8),
    *(
        (None, JOB, {"job": none}, N_AFFINITY)
        for none in ("max 100000", " ", "4 ", "four 100000", "-1 100000", "400000 0", "1 2 3")
    ),
    # that of any ancestor counts, and the tightest; not those of others, nor above the mount
    *((None, STEP, {folder: "300000 100000"}, 3) for folder in ("", "slurm", "slurm/job_7", "slurm/job_7/step_0")),
    (None, "0::/a/b/c\n", {"a": "500000 100000", "a/b": "200000 100000", "a/b/c": "900000 100000"}, 2),
    (None, JOB, {"other": "100000 100000", "..": "100000 100000"}, N_AFFINITY),
    (None, "0::/docker/0123abcd\n", {"": "200000 100000"}, 2),  # as a container sees its own cgroup
    # version 1, where -1 means none
    *((None, JOB_7, {"cpu,cpuacct/slurm/job_7": quota}, n) for quota, n in (("150000", 2), ("400000", 4), ("-1", N_AFFINITY))),
    (None, JOB_7, {"cpu,cpuacct/slurm/job_7": "x"}, N_AFFINITY),
    (None, "4:cpu:/slurm/job_7\n", {"cpu/slurm/job_7": "-1", "cpu/slurm": "300000"}, 3),
    (None, "4:cpu:/docker/0123abcd\n", {"cpu": "200000"}, 2),
    (None, "", {"cpu": "200000"}, 2),
    (None, "4:cpuset:/job\n", {"cpuset/job": "100000"}, N_AFFINITY),  # merely begins with cpu
    (None, "4:cpu,cpuacct:/job\n0::/job\n", {"cpu,cpuacct/job": "500000"}, 5),
    # the least of all
    ("4", JOB, {"job": "800000 100000"}, 4),
    ("8", JOB, {"job": "400000 100000"}, 4),
    ("99", JOB, {"job": "9900000 100000"}, N_AFFINITY),
]


@pytest.mark.parametrize(("slurm", "own_cgroups", "quotas", "expected"), GRANTS)
def test_a_process_may_use_the_least_of_what_affinity_slurm_and_its_cgroups_grant(
    slurm: str | None, own_cgroups: str, quotas: Mapping[str, str], expected: int, root: Path
) -> None:
    for name, quota in quotas.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        if " " in quota:
            (folder / "cpu.max").write_text(f"{quota}\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cpus(root, own_cgroups, slurm=slurm) == expected


def test_the_processor_has_a_name() -> None:
    assert cpu_name().strip()


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("fpu avx2 avx512f", False),
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu amx_bf16x", False),
    ],
)
def test_bfloat16_is_what_the_flags_of_the_processor_name(flags: str, has: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: a\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n")
    assert has_bfloat16(tmp_path / "cpuinfo") is has
    assert not has_bfloat16(tmp_path / "absent")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_wait_considerately_unless_the_user_has_said_how(before: dict[str, str], after: dict[str, str]) -> None:
    limit_openmp_spinning(before)
    assert before == after


@pytest.mark.parametrize(("before", "after"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")])
def test_onnx_runtime_tells_nobody_unless_the_user_has_said_so(before: dict[str, str], after: str) -> None:
    disable_onnxruntime_telemetry(before)
    assert before == {"ORT_DISABLE_TELEMETRY": after}


@pytest.mark.parametrize(
    ("own_cgroups", "file", "limit", "slurm", "expected"),
    [
        ("0::/job/step", "job/memory.max", "3000", "", {"machine": 8192, "cgroup": 3000}),
        ("0::/job/step", "job/memory.max", "max", "2", {"machine": 8192, "Slurm": 2 * 1024**2}),
        ("5:memory:/job", "memory/job/memory.limit_in_bytes", "4096", "0", {"machine": 8192, "cgroup": 4096}),
        ("5:memory:/job", "memory/job/memory.limit_in_bytes", "9223372036854771712", "x", {"machine": 8192}),
        ("5:cpu:/job", "memory/job/memory.limit_in_bytes", "4096", "", {"machine": 8192}),
    ],
)
def test_memory_is_that_of_the_machine_slurm_and_the_tightest_cgroup(
    own_cgroups: str, file: str, limit: str, slurm: str, expected: dict[str, int], root: Path
) -> None:
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(f"{limit}\n")
    meminfo, listing = root.parent / "meminfo", root.parent / "self"
    meminfo.write_text("MemTotal:       8 kB\nMemFree:        4 kB\n")
    listing.write_text(f"{own_cgroups}\n")
    environment = {"SLURM_MEM_PER_NODE": slurm}
    assert memory_grants(environment=environment, cgroup_root=root, own_cgroups=listing, meminfo=meminfo) == expected


@pytest.mark.parametrize(
    ("slurm", "expected"),
    [
        ({"MEM_PER_CPU": "2048", "CPUS_ON_NODE": "4"}, {"Slurm": 8 * 1024**3}),
        ({"MEM_PER_CPU": "2048"}, {}),
        ({"MEM_PER_CPU": "0", "CPUS_ON_NODE": "4"}, {}),
        ({"MEM_PER_NODE": "1", "MEM_PER_CPU": "2048", "CPUS_ON_NODE": "4"}, {"Slurm": 1024**2}),
    ],
)
def test_memory_for_each_cpu_counts_for_all_cpus_of_the_job(
    slurm: dict[str, str], expected: dict[str, int], tmp_path: Path
) -> None:
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    absent = tmp_path / "absent"
    assert memory_grants(environment=environment, cgroup_root=absent, own_cgroups=absent, meminfo=absent) == expected
