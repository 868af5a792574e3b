"""A cohort in one call against a call for each case, side by side; and the memory of a long cohort.

    python tests/benchmarks/cohort.py WEIGHTS CASE...               # cases per minute, both ways, in alternate order
    python tests/benchmarks/cohort.py WEIGHTS CASE... --long 50     # peak memory when so many cases are done, and when 5 are

CASE: a case folder. Options after `--` go to `drunet segment`. The long cohort repeats the cases under other names.
"""

import argparse
import re
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from subprocess import PIPE, Popen, run

from drunet_cli.brats import CHANNELS
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import find_cases

_DRUNET = [sys.executable, "-m", "drunet_cli", "segment"]
_EARLY = 5


def main() -> None:
    arguments = sys.argv[1:]
    options: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, options = arguments[:at], arguments[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("cases", nargs="+", type=Path)
    parser.add_argument("--long", type=int, metavar="N")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args(arguments)
    cases = find_cases(given.cases).cases
    options += ["--weights", given.weights, "--quiet"]
    if given.long:
        long_cohort(cases, given.long, options)
    else:
        side_by_side(cases, options, given.rounds)


def side_by_side(cases: tuple[Case, ...], options: list[str], rounds: int) -> None:
    """Seconds of both ways, one after the other in every round."""
    totals = {"one call": 0.0, "single calls": 0.0}
    for round_ in range(rounds):
        for way in sorted(totals, reverse=bool(round_ % 2)):
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                if way == "one call":
                    table = write_table(cases, Path(folder) / "cases.csv")
                    run([*_DRUNET, str(table), "-o", f"{folder}/out", *options], check=True, stdout=PIPE)
                else:
                    for case in cases:
                        files = [f"--{modality}={case.images[modality]}" for modality in CHANNELS]
                        run([*_DRUNET, *files, "-o", f"{folder}/{case.name}.nii.gz", *options], check=True, stdout=PIPE)
                totals[way] += time.perf_counter() - begin
    for way, seconds in totals.items():
        print(f"{way:13}: {seconds:6.1f} s, {60 * rounds * len(cases) / seconds:5.2f} cases per minute")
    print(f"ratio        : {totals['single calls'] / totals['one call']:.2f}")


def long_cohort(cases: tuple[Case, ...], n_cases: int, options: list[str]) -> None:
    """Peak resident memory (VmHWM) of the process whenever a label map has been written."""
    repeated = [Case(f"case_{n:04}", cases[n % len(cases)].images) for n in range(n_cases)]
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(repeated, Path(folder) / "cases.csv")
        with Popen([*_DRUNET, str(table), "-o", f"{folder}/out", *options], stdout=PIPE, text=True) as process:
            assert process.stdout is not None
            peaks = list(accumulate((peak_mib(process.pid) for _ in process.stdout), max))
    assert process.returncode == 0
    assert len(peaks) == n_cases
    for n in sorted({1, _EARLY, *range(10, n_cases + 1, 10), n_cases}):
        print(f"peak after {n:4} cases: {peaks[n - 1]:7.1f} MiB")
    print(f"last against {_EARLY}: {100 * (peaks[-1] / peaks[_EARLY - 1] - 1):+.1f} %")


def write_table(cases: tuple[Case, ...] | list[Case], path: Path) -> Path:
    rows = [",".join([case.name, *(str(case.images[m].absolute()) for m in CHANNELS)]) for case in cases]
    path.write_text("\n".join(["case," + ",".join(CHANNELS), *rows]) + "\n")
    return path


def peak_mib(pid: int) -> float:
    """0 for a process that has ended, of which only its exit code is left."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    main()
