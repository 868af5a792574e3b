"""How many CPUs and how much memory a process may use, in cgroup folders of the test's own making."""

import os
import subprocess
import sys
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


def version_2(folder: Path, limit: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(f"{limit}\n")


def version_1(folder: Path, quota_us: str, period_us: str = "100000") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota_us}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period_us}\n")


def cpus(root: Path, own_cgroups: str = "", *, slurm: str | None = None) -> int:
    """What is granted under these cgroup folders, where /proc/self/cgroup reads `own_cgroups`."""
    root.mkdir(exist_ok=True)
    listing = root.parent / "self"
    listing.write_text(own_cgroups)
    environment = {} if slurm is None else {"SLURM_CPUS_PER_TASK": slurm}
    return granted_cpus(environment=environment, cgroup_root=root, own_cgroups=listing)


def test_affinity_alone_decides_where_nothing_else_is_set(root: Path) -> None:
    assert cpus(root) == N_AFFINITY


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


@pytest.mark.parametrize(
    ("words", "expected"), [("6", 6), ("0", 1), *((w, N_AFFINITY) for w in ("", "many", "-3", "2.5", "²"))]
)
def test_slurm_is_heeded_and_rubbish_in_its_variable_ignored(root: Path, words: str, expected: int) -> None:
    assert cpus(root, slurm=words) == expected


def test_the_real_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert granted_cpus(cgroup_root=tmp_path, own_cgroups=tmp_path / "none") == 1


@pytest.mark.parametrize(
    ("limit", "expected"), [("400000 100000", 4), ("250000 100000", 3), ("50000 100000", 1), ("1 100000", 1), ("8000 1000", 8)]
)
def test_a_version_2_quota_is_rounded_up(root: Path, limit: str, expected: int) -> None:
    version_2(root / "job", limit)
    assert cpus(root, "0::/job\n") == expected


@pytest.mark.parametrize("limit", ["max 100000", "", "4", "four 100000", "-1 100000", "400000 0", "1 2 3"])
def test_a_version_2_file_without_a_quota_sets_no_limit(root: Path, limit: str) -> None:
    version_2(root / "job", limit)
    assert cpus(root, "0::/job\n") == N_AFFINITY


@pytest.mark.parametrize("tight", ["", "slurm", "slurm/job_7", "slurm/job_7/step_0"])
def test_a_quota_of_any_ancestor_counts(root: Path, tight: str) -> None:
    for folder in ("", "slurm", "slurm/job_7", "slurm/job_7/step_0"):
        version_2(root / folder, "300000 100000" if folder == tight else "max 100000")
    assert cpus(root, "0::/slurm/job_7/step_0\n") == 3


def test_the_tightest_of_nested_quotas_counts(root: Path) -> None:
    version_2(root / "a", "500000 100000")
    version_2(root / "a/b", "200000 100000")
    version_2(root / "a/b/c", "900000 100000")
    assert cpus(root, "0::/a/b/c\n") == 2


def test_only_quotas_of_ones_own_cgroups_below_the_mount_count(root: Path) -> None:
    version_2(root / "other", "100000 100000")
    version_2(root.parent, "100000 100000")
    assert cpus(root, "0::/job\n") == N_AFFINITY
    version_2(root, "200000 100000")  # as a container sees its own cgroup
    assert cpus(root, "0::/docker/0123abcd\n") == 2


@pytest.mark.parametrize(("quota", "expected"), [("150000", 2), ("400000", 4), ("-1", N_AFFINITY), ("x", N_AFFINITY)])
def test_a_version_1_quota_is_read_and_minus_one_means_none(root: Path, quota: str, expected: int) -> None:
    version_1(root / "cpu,cpuacct/slurm/job_7", quota)
    assert cpus(root, "7:memory:/else\n4:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/else\n") == expected


def test_a_version_1_quota_of_an_ancestor_or_of_the_root_counts(root: Path) -> None:
    version_1(root / "cpu/slurm/job_7", "-1")
    version_1(root / "cpu/slurm", "300000")
    assert cpus(root, "4:cpu:/slurm/job_7\n") == 3
    version_1(root / "cpu", "200000")
    assert cpus(root) == cpus(root, "4:cpu:/docker/0123abcd\n") == 2


def test_controllers_that_merely_begin_with_cpu_are_not_read(root: Path) -> None:
    version_1(root / "cpuset/job", "100000")
    assert cpus(root, "4:cpuset:/job\n") == N_AFFINITY


def test_a_hybrid_system_heeds_version_1(root: Path) -> None:
    version_1(root / "cpu,cpuacct/job", "500000")
    assert cpus(root, "4:cpu,cpuacct:/job\n0::/job\n") == 5


@pytest.mark.parametrize(
    ("slurm", "quota", "expected"), [("4", "800000", 4), ("8", "400000", 4), ("99", "9900000", N_AFFINITY)]
)
def test_the_least_of_all_grants_wins(root: Path, slurm: str, quota: str, expected: int) -> None:
    version_2(root / "job", f"{quota} 100000")
    assert cpus(root, "0::/job\n", slurm=slurm) == expected


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
