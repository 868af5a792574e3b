"""Time how long drunet takes to answer where it computes nothing, against what Typer and rich take alone.

    python tests/benchmarks/startup.py [--repeats N]

Prints the CPU seconds of whole processes, the median of the repeats, which go through the commands in turn: a program of one
command with Typer's help, and drunet's help, version, misuse and completion by Tab.
"""

import argparse
import os
import subprocess
import sys

import numpy as np

from drunet_cli.host import cpu_name

PLAIN = """
from pathlib import Path
from typing import Annotated
import typer
app = typer.Typer()
@app.command()
def segment(cases: list[Path], output: Annotated[Path, typer.Option("--output", "-o", help="A folder.")]) -> None:
    "Segment cases."
app()
"""
DRUNET = [sys.executable, "-m", "drunet_cli"]
COMPLETION = {"_DRUNET_COMPLETE": "complete_bash", "COMP_WORDS": "drunet segment --weights ", "COMP_CWORD": "3"}
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "Typer and rich alone, --help": ([sys.executable, "-c", PLAIN, "--help"], {}),
    "drunet --help": ([*DRUNET, "--help"], {}),
    "drunet segment --help": ([*DRUNET, "segment", "--help"], {}),
    "drunet --version": ([*DRUNET, "--version"], {}),
    "drunet segment --no-such-option": ([*DRUNET, "segment", "--no-such-option"], {}),
    "Tab after drunet segment --weights": (DRUNET, COMPLETION),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, (command, variables) in COMMANDS.items():
            process = subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            _, _, usage = os.wait4(process.pid, 0)
            seconds[name].append(usage.ru_utime + usage.ru_stime)
    alone = float(np.median(seconds["Typer and rich alone, --help"]))
    print(f"{cpu_name()}\n| command | CPU seconds | times as long |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {np.median(times):.2f} | {np.median(times) / alone:.2f} |")


if __name__ == "__main__":
    main()
