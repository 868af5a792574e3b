"""Check what is in the wheel and the sdist: `python .ci/contents.py TREE DIST`. Lists the wheel; exits with 1 and every fault.

The wheel holds the files of TREE/drunet_cli but for the README of a room, and its own metadata, nothing else and nothing less;
the sdist, what the wheel is built from and tested with.
"""

import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

LARGEST_WHEEL: Final = 12_000_000  # bytes; the weights are most of it
WEIGHTS: Final = "drunet_cli/weights/compact.safetensors"
TEMPLATE: Final = "drunet_cli/prepare/template.nii.gz"
NEEDED: Final = (
    "drunet_cli/py.typed",
    "drunet_cli/guide/first-case.md",
    "drunet_cli/report/page.html.j2",
    "drunet_cli/segmentation/viewer.js",
    WEIGHTS,
    TEMPLATE,
)
LICENCES: Final = ("LICENSE", "drunet_cli/weights/NOTICE")
DATA: Final = {".css", ".j2", ".js"}  # besides Python, the weights, the template and the guide: no images, no cases
GUIDE: Final = "drunet_cli/guide/*.md"
SOURCES: Final = ("pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", ".ci", ".github", "drunet_cli", "tests")


def files_of(tree: Path, *places: str) -> set[str]:
    """The files of a tree at or below these places, but for what Python leaves there."""
    found = {path for place in places for path in (tree / place, *(tree / place).rglob("*"))}
    return {path.relative_to(tree).as_posix() for path in found if path.is_file() and "__pycache__" not in path.parts}


def faults_of_wheel(wheel: Path, tree: Path) -> Iterator[str]:
    """What is wrong with a wheel, in words."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
    for name, size in sorted(sizes.items()):
        print(f"{size:>10,}  {name}")
    print(f"{wheel.stat().st_size:>10,}  {wheel.name}")
    if wheel.stat().st_size > LARGEST_WHEEL:
        yield f"larger than {LARGEST_WHEEL:,} bytes"
    metadata = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    package = {name for name in sizes if not name.startswith(f"{metadata}/")}
    expected = {name for name in files_of(tree, "drunet_cli") if PurePosixPath(name).name != "README.md"}
    yield from (f"{name}: is not a file of the package" for name in sorted(package - expected))
    yield from (f"{name}: is missing" for name in sorted((expected | set(NEEDED)) - package))
    yield from (f"{name}: is missing" for name in LICENCES if f"{metadata}/licenses/{name}" not in sizes)
    for name in sorted(package - {WEIGHTS, TEMPLATE}):
        path = PurePosixPath(name)
        if path.suffix not in {".py", *DATA} and path.name not in ("py.typed", "NOTICE") and not path.match(GUIDE):
            yield f"{name}: no such files belong into the wheel"


def faults_of_sdist(sdist: Path, tree: Path) -> Iterator[str]:
    """What is wrong with an sdist, in words."""
    with tarfile.open(sdist) as archive:
        names = {"/".join(PurePosixPath(member.name).parts[1:]) for member in archive.getmembers() if member.isfile()}
    yield from (f"{name}: is missing" for name in sorted(files_of(tree, *SOURCES, *LICENCES) - names))
    yield from (f"{name}: is missing" for name in (*SOURCES, *LICENCES) if not (tree / name).exists())


def main(tree: Path, folder: Path) -> int:
    """Print all faults; the exit code."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    faults = [f"{wheel.name}: {fault}" for fault in faults_of_wheel(wheel, tree)]
    faults += [f"{sdist.name}: {fault}" for fault in faults_of_sdist(sdist, tree)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
