"""How many modules the package has, and how many of them a run goes through.

    python -m tests.benchmarks.house [--tree CHECKOUT]

Reads and runs the package of this checkout, or of another one, older ones too. Prints modules (files that are no `__init__`),
lines of the package, modules below 100 lines with a single importer, names of modules and of classes that are used twice (a
command's module in cli/ may share its name with the room or module that it calls), and how many modules of drunet are imported
by `segment` (the golden case with the ONNX engine), `train` (one step), `weights list`, and `weights download` (from a file).
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
GOLDEN: Final = ROOT / "tests" / "golden"
MODALITIES: Final = ("flair", "t1ce", "t1", "t2")
SHORT: Final = 100  # lines

# Runs one command line in this process. The golden weights stand for the published ones, which are wider.
RUN: Final = """
import dataclasses, sys
from drunet_cli.cli.app import main
arguments = sys.argv[1:]
if arguments[:2] == ["weights", "download"]:
    try:
        from drunet_cli.weights import registry
    except ImportError:
        from drunet_cli.network import registry
    registry.ENTRIES["brats2020"] = dataclasses.replace(registry.ENTRIES["brats2020"], base_width=1)
code = main(arguments)
names = sorted(name for name in sys.modules if name.startswith("drunet_cli."))
packages = {name for name in names if hasattr(sys.modules[name], "__path__")}
print("modules:", *(name for name in names if name not in packages))
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="CHECKOUT")
    parser.add_argument("--names", action="store_true", help="name the modules that each run imports")
    arguments = parser.parse_args()
    tree = arguments.tree.absolute()
    print_house(tree / "drunet_cli")
    print("modules that a run imports:")
    for name, modules in modules_of_runs(tree).items():
        print(f"  {name:18} {len(modules)}")
        if arguments.names:
            print("".join(f"    {module}\n" for module in modules), end="")


def print_house(package: Path) -> None:
    """What can be read without running anything."""
    sources = {path.relative_to(package.parent).with_suffix("").parts: path.read_text() for path in package.rglob("*.py")}
    modules = {".".join(parts): text for parts, text in sources.items() if parts[-1] != "__init__"}
    n_lines = {module: len(text.splitlines()) for module, text in modules.items()}
    all_lines = sum(len(text.splitlines()) for text in sources.values())
    print(f"modules: {len(modules)}, {all_lines} lines, {all_lines / len(modules):.0f} a module")
    importers: dict[str, set[str]] = defaultdict(set)
    for module, text in modules.items():
        for imported in imports_of(ast.parse(text), modules):
            importers[imported].add(module)
    slivers = [module for module in sorted(modules) if n_lines[module] < SHORT and len(importers[module]) == 1]
    print_list(f"modules below {SHORT} lines with one importer", slivers)
    commands = "drunet_cli.cli."
    names = Counter(module.rpartition(".")[2] for module in modules if not module.startswith(commands))
    print_list("module names used twice", sorted(name for name, n in names.items() if n > 1))
    classes = Counter(
        node.name for text in modules.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)
    )
    print_list("class names used twice", sorted(name for name, n in classes.items() if n > 1))


def print_list(title: str, found: list[str]) -> None:
    print(f"{title}: {len(found)}" + (f" ({', '.join(name.removeprefix('drunet_cli.') for name in found)})" if found else ""))


def imports_of(tree: ast.AST, modules: Mapping[str, str]) -> Iterator[str]:
    """The package's modules that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield from (found for found in (name, name.rpartition(".")[0]) if found in modules)


def modules_of_runs(tree: Path) -> dict[str, list[str]]:
    """The package's modules that each run imports in its main process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for case in ("a", "b"):
            (folder / "cases" / case).mkdir(parents=True)
            for modality in MODALITIES:
                shutil.copy(
                    GOLDEN / "case" / f"golden_{modality}.nii.gz", folder / "cases" / case / f"{case}_{modality}.nii.gz"
                )
            shutil.copy(GOLDEN / "case" / "golden_seg_expected.nii.gz", folder / "cases" / case / f"{case}_seg.nii.gz")
        weights = GOLDEN / "keras_base1.h5"
        tiny = ["--base-width", "1", "--steps", "1", "--batch-size", "1", "--val-fraction", "0.5", "--jobs", "1"]
        runs = {
            "segment": ["segment", "cases/a", "--weights", str(weights), "--engine", "onnxruntime", "-o", "seg.nii.gz"],
            "train": ["train", "cases", "-o", "run", "--device", "cpu", *tiny],
            "weights list": ["weights", "list"],
            "weights download": ["weights", "download"],
        }
        environment = {
            **os.environ,
            "PYTHONPATH": str(tree),
            "DRUNET_CACHE_DIR": f"{folder}/cache",
            "DRUNET_WEIGHTS_URL": weights.as_uri(),
        }
        return {name: modules_of(command, folder, environment) for name, command in runs.items()}


def modules_of(command: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.splitlines()[-1].split()[1:]


if __name__ == "__main__":
    main()
