"""The rules of the house, as drunet_cli/README.md states them, read from the source. Each test lists every breach."""

import ast
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import drunet_cli

PACKAGE: Final = Path(drunet_cli.__file__).parent
PROJECT: Final = Path(__file__).parents[1]
MODULES: Final = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# From left to right. A room imports its own modules and rooms to its left, never a neighbour in its column.
ROOMS: Final = (
    {"brats", "errors", "host", "processes"},
    {"io"},
    {"phantom", "conversion", "evaluation", "prepare"},
    {"weights"},
    {"network"},
    {"segmentation"},
    {"report", "training"},
    {"cli"},
)
# Modules that import torch whenever they are imported. Nothing else imports these but inside a function.
TORCH: Final = re.compile(r"network/(model|torch_engine)\.py|training/(batches|learner|loop)\.py")
# Where each third-party package is at home; a package that is not named here may be imported anywhere, as numpy.
HOMES: Final = {
    "torch": re.compile(
        rf"{TORCH.pattern}|prepare/brain\.py|network/(engine|export)\.py|segmentation/\w+\.py|training/(distributed|history|run_folder|session)\.py"
    ),
    "onnx": re.compile(r"network/onnx_graph\.py"),
    "onnxruntime": re.compile(r"network/(cpu_engine|export)\.py"),
    "openvino": re.compile(r"network/cpu_engine\.py"),
    "google": re.compile(r"network/export\.py"),
    "requests": re.compile(r"weights/download\.py"),
    "urllib3": re.compile(r"weights/download\.py"),
    "h5py": re.compile(r"weights/keras\.py"),
    "safetensors": re.compile(r"weights/checkpoint\.py|training/(store|run_folder)\.py|network/export\.py"),
    "annotated_types": re.compile(r"training/recipe\.py"),
    "pydantic": re.compile(r"conversion/dataset\.py|training/(recipe|run_folder)\.py|weights/checkpoint\.py"),
    "platformdirs": re.compile(r"weights/registry\.py"),
    "nibabel": re.compile(r"io/\w+\.py|prepare/(brain|record)\.py|segmentation/outputs\.py"),
    "isal": re.compile(r"io/nifti\.py"),
    "pandas": re.compile(r"segmentation/segmenter\.py"),
    "pydicom": re.compile(r"prepare/(dicom_seg|series)\.py"),
    "highdicom": re.compile(r"prepare/dicom_seg\.py"),
    "dcm2niix": re.compile(r"prepare/dicom\.py"),
    "SimpleITK": re.compile(r"prepare/registration\.py"),
    "deepbet": re.compile(r"prepare/brain\.py"),
    "PIL": re.compile(r"io/png\.py"),
    "jinja2": re.compile(r"segmentation/viewer\.py"),
    "matplotlib": re.compile(r"evaluation/evaluate\.py|training/history\.py"),
    "tensorboard": re.compile(r"training/history\.py"),
    "rich": re.compile(r"cli/(console|evaluate)\.py"),
    "typer": re.compile(r"cli/\w+\.py"),
    "click": re.compile(r"(?!)"),  # Typer brings its own
}
BY_TORCH: Final = {"tensorboard"}  # torch.utils.tensorboard imports it for us
DISTRIBUTIONS: Final = {
    "annotated_types": "annotated-types",
    "PIL": "pillow",
    "SimpleITK": "simpleitk",
    "google": "protobuf",
}  # where a package is installed by another name than its own
# Calls that Windows lacks: a module that uses one asks for it first.
POSIX_ONLY: Final = {
    "os": {
        "chown",
        "fork",
        "geteuid",
        "getuid",
        "killpg",
        "mkfifo",
        "setresuid",
        "sched_getaffinity",
        "sched_setaffinity",
        "fchmod",
    },
    "signal": {"pthread_sigmask", "pthread_kill", "SIGKILL", "setitimer", "alarm"},
}
POSIX_MODULES: Final = {"fcntl", "resource", "pwd", "grp", "termios"}
SMALL: Final = 100


@dataclass(frozen=True)
class Import:
    """One import of a module. name: in full. at_the_top: it happens whenever the importing module is imported."""

    module: str
    name: str
    line: int
    at_the_top: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def file(self) -> str | None:
        """The module of drunet that the import opens; None for other packages and for the version."""
        parts = self.name.split(".")[1:] if self.package == "drunet_cli" else []
        for length in range(len(parts), 0, -1):
            if (found := "/".join(parts[:length]) + ".py") in MODULES:
                return found
        return None


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for module in MODULES for found in _imports(module, tree_of(module), at_the_top=True))


def _imports(module: str, node: ast.AST, *, at_the_top: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(module, alias.name, node.lineno, at_the_top) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}:{node.lineno}: a relative import"
        yield from (Import(module, f"{node.module}.{alias.name}", node.lineno, at_the_top) for alias in node.names)
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        yield from (found for child in node.body for found in _imports(module, child, at_the_top=False))
        yield from (found for child in node.orelse for found in _imports(module, child, at_the_top=at_the_top))
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(module, child, at_the_top=at_the_top and not inside)


def assert_none(breaches: list[str]) -> None:
    assert not breaches, "\n" + "\n".join(breaches)


def _room_of(module: str) -> str:
    return Path(module).parts[0].removesuffix(".py")


def _column_of(room: str) -> int:
    return next(column for column, rooms in enumerate(ROOMS) if room in rooms)


def test_no_room_imports_one_to_its_right_or_its_neighbour() -> None:
    inner = [found for found in imports() if found.file and found.module not in ("__main__.py", "__init__.py")]
    breaches = []
    for found in inner:
        room, other = _room_of(found.module), _room_of(str(found.file))
        is_own = room == other or (room in ROOMS[0] and other in ROOMS[0])
        if not is_own and _column_of(other) >= _column_of(room):
            breaches.append(str(found))
    assert_none(breaches)


def test_the_package_itself_imports_nothing_before_it_is_asked() -> None:
    assert_none([str(found) for found in imports() if found.module == "__init__.py" and found.at_the_top and found.file])


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = defaultdict(set)
    for found in imports():
        if found.at_the_top and found.file and found.file != found.module:
            graph[found.module].add(found.file)
    done: set[str] = set()
    circles = []

    def walk(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circles.append(" > ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph[module]):
                walk(other, (*path, module))
            done.add(module)

    for module in MODULES:
        walk(module, ())
    assert_none(circles)


def test_every_third_party_package_stays_in_its_home() -> None:
    strangers = [found for found in imports() if found.package in HOMES]
    assert_none([str(found) for found in strangers if not HOMES[found.package].fullmatch(found.module)])


def test_torch_is_imported_only_where_it_is_needed_for_certain() -> None:
    tops = [found for found in imports() if found.at_the_top and not TORCH.fullmatch(found.module)]
    breaches = [found for found in tops if found.package == "torch" or (found.file and TORCH.fullmatch(found.file))]
    assert_none([str(found) for found in breaches])


def test_every_imported_package_is_declared_and_every_declared_one_is_imported() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [words for extra, words in project["optional-dependencies"].items() if extra != "test"]
    declared = {re.split(r"[^\w-]", words)[0] for words in sum(extras, project["dependencies"])}
    imported = {DISTRIBUTIONS.get(found.package, found.package) for found in imports()}
    ours = {"drunet_cli", "pandas", *sys.stdlib_module_names}  # pandas: of people who have it
    assert imported - declared - ours == set(), "imported, but not declared"
    assert declared - imported - BY_TORCH == set(), "declared, but not imported"


def test_no_module_name_and_no_class_name_stands_for_two_things() -> None:
    names = Counter(Path(module).stem for module in MODULES if not module.startswith("cli/") and "__" not in module)
    rooms = {Path(module).parts[0] for module in MODULES if "/" in module}
    assert_none([name for name, n in names.items() if n > 1 or (name in rooms and f"{name}/{name}.py" in MODULES)])
    classes = Counter(node.name for module in MODULES for node in tree_of(module).body if isinstance(node, ast.ClassDef))
    assert_none([name for name, n in classes.items() if n > 1])


def test_no_small_module_serves_a_single_other() -> None:
    importers = defaultdict(set)
    for found in imports():
        if found.file and found.file != found.module:
            importers[found.file].add(found.module)
    lines = {module: len((PACKAGE / module).read_text(encoding="utf-8").splitlines()) for module in MODULES}
    small = [module for module, n in lines.items() if n < SMALL and "__" not in module and not module.startswith("cli/")]
    assert_none(
        [f"{module}: {lines[module]} lines, for {importers[module]}" for module in small if len(importers[module]) <= 1]
    )


def test_files_are_written_through_io_atomic_alone() -> None:
    breaches = []
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if not isinstance(node, ast.Call) or module == "io/atomic.py":
                continue
            called = ast.unparse(node.func)
            words = [word.value for word in [*node.args, *(k.value for k in node.keywords)] if isinstance(word, ast.Constant)]
            opens = called in ("open", "os.open") or called.endswith(".open")
            if called.endswith((".write_text", ".write_bytes")) or (
                opens and {"w", "wb", "a", "ab", "x", "xb", "r+b"} & set(words)
            ):
                breaches.append(f"{module}:{node.lineno} {ast.unparse(node)[:60]}")
    # A part of a download, which another run continues; the null device in place of a closed stream; a log, which every run
    # appends to.
    others = ("weights/download.py", "cli/app.py", "cli/console.py")
    assert_none([words for words in breaches if not words.startswith(others)])


def test_calls_that_windows_lacks_are_asked_for_first() -> None:
    breaches = []
    for module in MODULES:
        text = (PACKAGE / module).read_text(encoding="utf-8")
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                posix = node.attr in POSIX_ONLY.get(node.value.id, set())
                if posix and f'hasattr({node.value.id}, "{node.attr}")' not in text and "sys.platform" not in text:
                    breaches.append(f"{module}:{node.lineno} {ast.unparse(node)}")
    breaches += [str(found) for found in imports() if found.package in POSIX_MODULES and found.at_the_top]
    assert_none(breaches)


def test_no_sentence_begins_with_of_and_no_docstring_with_an_argument() -> None:
    breaches = []
    for module in MODULES:
        text = (PACKAGE / module).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            if re.search(r'(^\s*"""|^\s*# |[^\w ]# |  # |\. )Of\b|^\s+"""[a-z_]+: ', line):
                breaches.append(f"{module}:{number} {line.strip()}")
    assert_none(breaches)


def test_nothing_cites_a_file_that_is_not_there() -> None:
    cited = re.compile(r"[\w./-]+\.md\b")
    module = re.compile(rf"`({'|'.join(path.name for path in PACKAGE.iterdir() if path.is_dir())})[./](\w+)`")
    breaches = []
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.md"), *(PROJECT / "tests").rglob("*.py"), *PROJECT.glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        if path.parent.name != "guide":  # whose report.html is a user's
            named = ["/".join(names) for names in module.findall(text)]
            breaches += [f"{path.relative_to(PROJECT)}: {name}" for name in named if f"{name}.py" not in MODULES]
        for name in cited.findall(text):
            places = (PROJECT, path.parent, PACKAGE, PACKAGE / "guide", PROJECT / "tests", PROJECT / ".github")
            if not any((place / name).is_file() for place in places) and path != Path(__file__):
                breaches.append(f"{path.relative_to(PROJECT)}: {name}")
    assert_none(breaches)


README = (PACKAGE / "README.md").read_text()


def test_readme_names_every_module_of_every_room_and_no_other() -> None:
    rooms = dict(re.findall(r"^\| (?:\[?`(\w+)/`\S*|top of the package) \| .* \| (.*) \|$", README, re.MULTILINE))
    named = {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in rooms.items()}
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if not path.stem.startswith("__"):
            found.setdefault("/".join(path.relative_to(PACKAGE).parts[:-1]), set()).add(path.stem)
    assert {room: modules for room, modules in named.items() if modules} == found


def test_readme_names_no_module_that_is_not_there() -> None:
    named = set(re.findall(r"`(\w+/\w+)(?:\.py)?`", README)) - {"tests/test_architecture"}
    assert not {name for name in named if not (PACKAGE / f"{name}.py").exists()}
