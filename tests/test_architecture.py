"""The rooms and their one direction, as architecture.md draws them, read from the source: inside functions too."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import drunet_cli

PACKAGE: Final = Path(drunet_cli.__file__).parent
PROJECT: Final = Path(__file__).parents[1] / "pyproject.toml"
MODULES: Final = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# From left to right. No room imports one to its right, nor its neighbour in the same column; the first column is one room here.
ROOMS: Final = (
    {"brats", "errors", "host", "jobs", "signals"},
    {"io"},
    {"phantom", "conversion", "evaluation"},
    {"weights"},
    {"network"},
    {"segmentation"},
    {"report", "training"},
    {"cli"},
)
TORCH_AT_THE_TOP: Final = re.compile(r"network/(model|torch_engine)\.py|training/(augmentation|learner|loop)\.py")
TORCH_IN_FUNCTIONS: Final = re.compile(
    r"network/(engine|export)\.py|segmentation/\w+\.py|training/(batches|distributed|history|run_folder|session)\.py"
)
REQUESTS: Final = re.compile(r"weights/download\.py")
PACKAGE_OF: Final = {"pillow": "PIL", "protobuf": "google"}  # where a distribution has another name than what it installs
PILLOW: Final = re.compile(r"io/png\.py|segmentation/preview\.py|report/page\.py")
RICH: Final = re.compile(r"cli/console\.py")
NIBABEL: Final = re.compile(r"io/\w+\.py|segmentation/outputs\.py")


@dataclass(frozen=True)
class Import:
    """One imported module, in full. at_the_top: it happens whenever the importing module is imported."""

    name: str
    line: int
    at_the_top: bool

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def imports_of(module: str) -> list[Import]:
    """Every import of a module of drunet_cli, given by its path in the package."""
    return list(_imports(ast.parse((PACKAGE / module).read_text()), at_the_top=True))


def _imports(node: ast.AST, *, at_the_top: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, at_the_top) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: a relative import"
        # `from drunet_cli.io import nifti` imports a module, `from drunet_cli.io.nifti import Volume` a name of one.
        yield from (Import(f"{node.module}.{alias.name}", node.lineno, at_the_top) for alias in node.names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        yield from (found for child in node.body for found in _imports(child, at_the_top=False))
        yield from (found for child in node.orelse for found in _imports(child, at_the_top=at_the_top))
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, at_the_top=at_the_top and not inside)


def room_of(name: str) -> str:
    """The room of an imported name such as drunet_cli.io.nifti.Volume."""
    return name.split(".")[1]


def column_of(room: str) -> int:
    columns = [column for column, rooms in enumerate(ROOMS) if room in rooms]
    assert columns, f"{room} has no place among the rooms"
    return columns[0]


def file_of(name: str) -> str | None:
    """The module of the package that an import opens, None for the version and whatever is not ours."""
    parts = name.split(".")[1:] if name.startswith("drunet_cli.") else []
    for length in range(len(parts), 0, -1):
        if (found := "/".join(parts[:length]) + ".py") in MODULES:
            return found
    return None


every_module = pytest.mark.parametrize("module", MODULES)


@every_module
def test_no_room_imports_one_to_its_right(module: str) -> None:
    if module == "__main__.py":
        return
    room = Path(module).parts[0].removesuffix(".py")
    own = [
        found for found in imports_of(module) if found.name.startswith("drunet_cli.") and room_of(found.name) != "__version__"
    ]
    if module == "__init__.py":  # its names are typed, and imported only when they are used
        assert not [found for found in own if found.at_the_top]
        return
    allowed = {room}.union(*ROOMS[: column_of(room)], ROOMS[0])
    assert not [found for found in own if room_of(found.name) not in allowed]


@every_module
def test_only_the_network_and_its_users_import_torch(module: str) -> None:
    torch = [found for found in imports_of(module) if found.package == "torch"]
    if TORCH_AT_THE_TOP.fullmatch(module):
        return
    allowed = TORCH_IN_FUNCTIONS.fullmatch(module)
    assert not [found for found in torch if found.at_the_top or not allowed]


@every_module
def test_no_module_brings_torch_in_by_the_import_of_another(module: str) -> None:
    if TORCH_AT_THE_TOP.fullmatch(module):
        return
    opened = [(found.line, file_of(found.name)) for found in imports_of(module) if found.at_the_top]
    assert not [(line, file) for line, file in opened if file is not None and TORCH_AT_THE_TOP.fullmatch(file)]


@every_module
def test_only_what_a_person_sees_knows_rich(module: str) -> None:
    assert RICH.fullmatch(module) or not [found for found in imports_of(module) if found.package == "rich"]


@every_module
def test_only_functions_of_the_download_import_requests(module: str) -> None:
    requests = [found for found in imports_of(module) if found.package in ("requests", "urllib3")]
    allowed = REQUESTS.fullmatch(module)
    assert not [found for found in requests if found.at_the_top or not allowed]


@every_module
def test_only_io_knows_nibabel(module: str) -> None:
    """And the outputs, whose sidecar records its version."""
    assert NIBABEL.fullmatch(module) or not [found for found in imports_of(module) if found.package == "nibabel"]


@every_module
def test_only_pictures_know_pillow(module: str) -> None:
    assert PILLOW.fullmatch(module) or not [found for found in imports_of(module) if found.package == "PIL"]


@every_module
def test_no_module_imports_click(module: str) -> None:
    """Typer brings its own."""
    assert not [found for found in imports_of(module) if found.package == "click"]


@every_module
def test_every_imported_package_is_a_declared_dependency(module: str) -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = [words for extra, words in project["optional-dependencies"].items() if extra != "test"]
    declared = {re.split(r"[^\w-]", words)[0] for words in sum(extras, project["dependencies"])}
    ours = {"drunet_cli", *sys.stdlib_module_names, *(PACKAGE_OF.get(name, name) for name in declared)}
    assert not [found for found in imports_of(module) if found.package not in ours]
