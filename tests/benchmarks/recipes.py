"""Recipes side by side: the same cases, split, steps and seeds; Dice of the held-out cases after the last step.

    python tests/benchmarks/recipes.py CASES -o DIR --validation NAME NAME ... --steps 600 --seeds 0 1 2 \
        --variant paper=paper --variant modern=modern --variant no-dice=modern,loss.dice=0

Every variant is a recipe and changes to it, as lines of its TOML file. The held-out cases are looked at once, after the last
step, so that nothing is chosen by them. Trainings run --at-once N, one thread each; what is finished is not run again, and what
was interrupted continues.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from drunet_cli.brats import REGIONS
from drunet_cli.io.discovery import find_cases

NEVER = 10**6


@dataclass(frozen=True)
class Variant:
    name: str
    recipe: str
    changes: Mapping[str, Mapping[str, object]]


def variant(text: str) -> Variant:
    name, _, rest = text.partition("=")
    recipe, *changes = rest.split(",")
    nested: dict[str, dict[str, object]] = {}
    for change in changes:
        key, _, value = change.partition("=")
        section, _, setting = key.partition(".")
        nested.setdefault(section, {})[setting] = json.loads(value.replace(";", ","))
    return Variant(name, recipe, nested)


def config(of: Variant, base_width: int) -> str:
    sections = {key: dict(value) for key, value in of.changes.items()}
    sections.setdefault("validation", {})["every_epochs"] = NEVER  # but after the last
    sections.setdefault("network", {})["base_width"] = base_width
    lines = [f'recipe = "{of.recipe}"']
    for section, settings in sections.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]
    return "\n".join(lines) + "\n"


def train(of: Variant, seed: int, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Dice of the held-out cases by region."""
    run = arguments.output / f"{of.name}-{seed}"
    file = arguments.output / f"{of.name}.toml"
    command = [sys.executable, "-m", "drunet_cli", "train", *arguments.cases, "-o", str(run), "--config", str(file)]
    command += ["--steps", str(arguments.steps), "--seed", str(seed), "--split", str(arguments.output / "split.json")]
    command += ["--slices-dir", str(arguments.output / "slices"), "--precision", arguments.precision, "--resume"]
    command += ["--threads", str(arguments.threads), "--device", arguments.device]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "DRUNET_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{of.name}, seed {seed}: {done.stderr}")
    with (run / "cases.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if int(row["step"]) == arguments.steps]
    with (run / "metrics.csv").open() as stream:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(stream))
    scores = [{region: float(row[f"dice_{region}"]) for region in REGIONS} for row in rows]
    mean = {region: statistics.fmean(score[region] for score in scores) for region in REGIONS}
    in_words = "  ".join(f"{region} {value:.3f}" for region, value in mean.items())
    print(f"{of.name:12} seed {seed}  {in_words}  mean {statistics.fmean(mean.values()):.3f}  ({seconds:.0f} s)", flush=True)
    return scores


def print_table(variants: list[Variant], seeds: list[int], results: list[list[dict[str, float]]]) -> None:
    print(f"\n| | {' | '.join(REGIONS)} | mean |\n|---|{'---|' * (len(REGIONS) + 1)}")
    for index, of in enumerate(variants):
        runs = results[index * len(seeds) : (index + 1) * len(seeds)]
        by_run = [{region: statistics.fmean(score[region] for score in scores) for region in REGIONS} for scores in runs]
        for means in by_run:
            means["mean"] = statistics.fmean(means.values())
        cells = []
        for column in (*REGIONS, "mean"):
            values = [means[column] for means in by_run]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.3f}{spread}")
        print(f"| {of.name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("-o", dest="output", type=Path, required=True)
    parser.add_argument("--validation", nargs="+", required=True)
    parser.add_argument("--variant", dest="variants", action="append", type=variant, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--base-width", type=int, default=4)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2)
    arguments = parser.parse_args()
    names = [case.name for case in find_cases([Path(source) for source in arguments.cases]).cases]
    arguments.output.mkdir(parents=True, exist_ok=True)
    split = {"train": sorted(set(names) - set(arguments.validation)), "validation": arguments.validation}
    (arguments.output / "split.json").write_text(json.dumps(split))
    for of in arguments.variants:
        (arguments.output / f"{of.name}.toml").write_text(config(of, arguments.base_width))
    runs = [(of, seed) for of in arguments.variants for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        results = list(pool.map(lambda run: train(run[0], run[1], arguments), runs))
    print_table(arguments.variants, arguments.seeds, results)


if __name__ == "__main__":
    main()
