"""README and guide: their commands run, in a folder that holds what their reader has, and they say what the code says."""

import re
import shlex
import shutil
import tomllib
from itertools import chain
from pathlib import Path
from typing import Final

import nibabel as nib
import pytest
from packaging.requirements import Requirement

import drunet_cli
from drunet_cli import errors
from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.app import main
from drunet_cli.cli.guide import PAGES, TOPICS
from drunet_cli.io.checks import WarningCode
from drunet_cli.report.runs import LabelMapState
from drunet_cli.segmentation.outputs import read_sidecar
from tests.cli.test_help import COMMANDS
from tests.support import GOLDEN_IMAGES, GOLDEN_LABELS, GOLDEN_WEIGHTS, open_image

REPOSITORY: Final = Path(__file__).parents[1]
README: Final = REPOSITORY / "README.md"
CONTRIBUTING: Final = REPOSITORY / ".github" / "CONTRIBUTING.md"
DOCUMENTS: Final = {path: path.read_text() for path in (README, *sorted(PAGES.glob("*.md")))}
LARGEST_README: Final = 12_000  # bytes; a longer one is not read
BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK: Final = re.compile(r"\[([^]]*)\]\(([^)\s]*)\)")
AUTHORS_FILE: Final = "weights_brats_dr_unet_test_model_DO_05.h5"
NAMES_OF_THE_SCANNER: Final = {Modality.FLAIR: "FLAIR", Modality.T1CE: "T1w_CE", Modality.T1: "T1w", Modality.T2: "T2w"}
NAMES_OF_THE_TABLE: Final = {Modality.FLAIR: "dark", Modality.T1CE: "gd", Modality.T1: "sag", Modality.T2: "tse"}
# What a shell or a scheduler would put there, and where an absolute folder lies here.
PLACEHOLDERS: Final = {
    "$SLURM_ARRAY_TASK_ID": "1",
    "{}/4": "1/4",
    "/data/BraTS2021": "BraTS2021_TrainingData",
    "segment prepared": "segment BraTS2021_TrainingData",
    "prepare patients": "prepare BraTS2021_TrainingData",
    "segment patients": "segment BraTS2021_TrainingData",
    "--folds 5": "--folds 2",  # as many as there are cases here
}
# Lines of shell that no test runs, and why.
NOT_RUN: Final = {
    r"(\.venv/bin/)?pip |python3 -m venv |\. \S+/activate": "needs a package index; .ci/run and .ci/package install drunet",
    r"docker |(srun .*)?apptainer |mkdir -p weights": "needs a builder of containers",
    r"drunet demo": "takes a case of full size; tests/cli/test_demo.py runs it",
    r"drunet (prepare|segment) (studies|--t1 study:3) ": "needs DICOM series; tests/cli/test_dicom.py makes some",
    r"drunet --install-completion": "changes the settings of a shell; tests/cli/test_completion.py asks what Tab offers",
    r"export |wait$|drunet\.?/bin/": "is of the shell alone",
    r"\.venv/bin/(python|ruff)|\.ci/|pipx ": "is of those who change drunet",
}
# Options of other programs than drunet that README and guide name.
FOREIGN_OPTIONS: Final = frozenset(
    [
        *("--array", "--cpus-per-task", "--gres", "--nproc-per-node"),
        *("--extra-index-url", "--find-links", "--from", "--no-deps", "--no-index", "--upgrade"),
        *("--bind", "--build-arg", "--env", "--gpus", "--nv", "--rm", "--user"),
        *("--exact", "--long", "--repeats"),
    ]
)
NAMES: Final = "|".join(words[0] for words in COMMANDS if len(words) == 1)


def lines_of(*blocks: str) -> list[str]:
    """The command lines of shell blocks: those that a backslash continues as one, without comments."""
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def is_left_out(line: str) -> bool:
    return any(re.match(pattern, line) for pattern in NOT_RUN)


def command_in(line: str) -> str | None:
    """What follows drunet in a line, without what runs it, such as srun or xargs; None where nothing does."""
    found = re.search(rf"(?:^|[ /])(?:drunet|-m drunet_cli) ((?:{NAMES}) ?.*?)(?: &| > \S+)?$", line)
    return found[1] if found else None


def commands_of(lines: list[str]) -> list[str]:
    """Each once."""
    return [command for command in dict.fromkeys(map(command_in, lines)) if command is not None]


SHELL_LINES: Final = lines_of(*(block for text in DOCUMENTS.values() for kind, block in BLOCK.findall(text) if kind == "sh"))
OF_THE_README: Final = commands_of(lines_of(*(block for kind, block in BLOCK.findall(DOCUMENTS[README]) if kind == "sh")))
OF_THE_DOCUMENTS: Final = commands_of([line for line in SHELL_LINES if not is_left_out(line)])
OF_THE_HELP: Final = commands_of(
    [line for command in COMMANDS.values() for line in command.help.splitlines() if line.startswith(("drunet ", "torchrun "))]
)
PROGRAMS: Final = [block for text in DOCUMENTS.values() for kind, block in BLOCK.findall(text) if kind == "python"]


def _place(folder: Path, names: dict[Modality, str], *, segmentation: str | None = None, suffix: str = ".nii.gz") -> None:
    """The middle of the golden case, which is soon compared and shown, under these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for modality, name in names.items():
        nib.save(open_image(GOLDEN_IMAGES[modality]).slicer[88:152, 88:152], folder / f"{name}{suffix}")
    if segmentation is not None:
        nib.save(open_image(GOLDEN_LABELS).slicer[88:152, 88:152], folder / f"{segmentation}{suffix}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reader has, and what earlier commands have left."""
    folder = tmp_path_factory.mktemp("reader")
    _place(folder, {modality: str(modality) for modality in CHANNELS})
    _place(folder, {modality: f"p01_{modality}" for modality in CHANNELS}, segmentation="p01_reference")
    _place(folder, {Modality.T1: "t1", Modality.T1CE: "t1c", Modality.T2: "t2", Modality.FLAIR: "f"}, suffix=".nii")
    _place(folder / "patients" / "p02", {modality: f"p02_{name}" for modality, name in NAMES_OF_THE_SCANNER.items()})
    _place(folder / "p03", NAMES_OF_THE_TABLE)
    [table] = [block for kind, block in BLOCK.findall((PAGES / "many-cases.md").read_text()) if kind == "text"]
    (folder / "cases.csv").write_text(table)
    for case in ("BraTS2021_00000", "p01"):
        names = {modality: f"{case}_{modality}" for modality in CHANNELS}
        _place(folder / "BraTS2021_TrainingData" / case, names, segmentation=f"{case}_seg")
    case = "BraTS2021_00001"
    _place(folder / "BraTS2021_ValidationData" / case, {modality: f"{case}_{modality}" for modality in CHANNELS})
    names = dict(zip(CHANNELS, ("sub-01_FLAIR", "sub-01_ce-gd_T1w", "sub-01_T1w", "sub-01_T2w"), strict=True))
    _place(folder / "dataset" / "sub-01" / "anat", names)
    for name in (AUTHORS_FILE, "mine.h5"):
        shutil.copyfile(GOLDEN_WEIGHTS, folder / name)
    quiet = ["--quiet", "--weights", str(GOLDEN_WEIGHTS)]
    training = str(folder / "BraTS2021_TrainingData")
    assert main(["segment", training, "-o", str(folder / "results"), "--uncertainty", *quiet]) == 0
    assert main(["segment", f"{training}/p01", "-o", str(folder / "p01_seg.nii.gz"), "--no-sidecar", *quiet]) == 0
    assert main(["convert", "nii2png", training, "-o", str(folder / "slices"), "--quiet", "--jobs", "1"]) == 0
    shutil.copytree(folder / "slices" / "masks", folder / "slices" / "predictions")
    shutil.copytree(folder / "BraTS2021_TrainingData", folder / "TestData")
    for copy in ("test_results", "cv/out_of_fold", "mended"):
        shutil.copytree(folder / "results", folder / copy)
    assert main(["export", "--weights", str(GOLDEN_WEIGHTS), "-o", str(folder / "run" / "best.safetensors"), "--quiet"]) == 0
    (folder / "cv" / "ensemble.json").write_text('{"weights": ["../run/best.safetensors"]}')
    return folder


@pytest.fixture
def reader(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_is_published: None) -> Path:
    """The current folder: a copy of what the reader has. The golden weights are what a download gives."""
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    return folder


def _make_room(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("command", dict.fromkeys([*OF_THE_DOCUMENTS, *OF_THE_HELP]))
def test_a_command_of_the_documents_or_of_the_help_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = command
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    words = shlex.split(text, comments=True)
    if words[0] == "demo":
        pytest.skip(NOT_RUN["drunet demo"])
    if words[0] == "train":  # training takes hours
        words += ["--dry-run", "--batch-size", "2"]
    if words[0] == "segment" and command not in OF_THE_README:  # what each option does is tried in tests/cli and others
        words.append("--dry-run")
    if words[0] == "prepare":  # takes a head of full size; tests/prepare tries it
        words.append("--dry-run")
    if words[0] in ("convert", "evaluate", "train"):  # in this process
        words += ["--jobs", "1"]
    if {"info", "path"} & set(words):
        assert main(["weights", "download", "--quiet"]) == 0
    if {"mine"} & set(words) and "import" not in words:
        assert main(["weights", "import", "mine.h5", "--name", "mine", "--quiet"]) == 0
    if "-o" in words:
        _make_room(Path(words[words.index("-o") + 1]))
    code = main(words)
    assert code == 0, capsys.readouterr().err


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: f"{len(program.splitlines())} lines")
def test_a_program_of_the_documents_runs(program: str) -> None:
    _make_room(Path("p01_seg.nii.gz"))
    exec(compile(program, "program", "exec"), {})
    assert read_sidecar(Path("p01_seg.json"))


def test_every_line_of_shell_runs_here_or_has_a_reason_not_to() -> None:
    assert [line for line in SHELL_LINES if command_in(line) is None and not is_left_out(line)] == []


def test_the_documents_show_every_command() -> None:
    leaves = {" ".join(words) for words, command in COMMANDS.items() if words and not hasattr(command, "commands")}
    text = "\n".join(DOCUMENTS.values())
    assert [leaf for leaf in sorted(leaves) if f"drunet {leaf}" not in text] == []


def test_every_option_that_the_documents_name_is_one() -> None:
    known = {name for command in COMMANDS.values() for parameter in command.params for name in parameter.opts}
    code = "\n".join(chain(SHELL_LINES, *(re.findall(r"`([^`\n]+)`", text) for text in DOCUMENTS.values())))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code))
    assert named - known - FOREIGN_OPTIONS - {"--help", "--version", "--install-completion", "--show-completion"} == set()
    assert named >= FOREIGN_OPTIONS


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert README.stat().st_size <= LARGEST_README


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(BLOCK, "", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_to_files_and_headings_that_are_there() -> None:
    paths = [*DOCUMENTS, *(path for path in (CONTRIBUTING, CONTRIBUTING.with_name("SECURITY.md")) if path.exists())]
    lost = []
    for path in paths:
        for text, link in LINK.findall(path.read_text()):
            if link.startswith("https://"):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.is_file() or (anchor and anchor not in _anchors(target)):
                lost.append(f"{path.name}: {link}")
            elif text.startswith("`drunet guide ") and text != f"`drunet guide {target.stem}`":
                lost.append(f"{path.name}: {text} leads to {link}")
    assert lost == []


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {Path(link.partition("#")[0]).stem for _, link in LINK.findall(DOCUMENTS[README]) if "/guide/" in link}
    assert linked == set(TOPICS)


def test_the_pages_name_what_a_program_may_meet(prepared: Path) -> None:
    """Codes of warnings, exit codes, and the keys of a sidecar."""
    check, exit_codes, outputs = ((PAGES / f"{topic}.md").read_text() for topic in ("check", "exit-codes", "outputs"))
    assert set(re.findall(r"^\| `([a-z-]+)` \|", check, re.MULTILINE)) == {*map(str, WarningCode), *map(str, LabelMapState)}
    cells = re.findall(r"^\| ([\d, ]+) \|", exit_codes, re.MULTILINE)
    assert {int(code) for cell in cells for code in cell.split(", ")} == {*errors.ExitCode}
    document = read_sidecar(prepared / "results" / "p01.json")
    assert document is not None
    assert [key for key in [*document, *document["settings"], *document["geometry"]] if f"`{key}`" not in outputs] == []


def test_the_messages_that_troubleshooting_explains_are_those_of_the_code() -> None:
    package = Path(drunet_cli.__file__).parent
    source = "\n".join(path.read_text() for path in sorted(package.rglob("*.py")))
    source = re.sub(r'"\s+f?"', "", source)  # the parts of one text
    messages = re.findall(r"^\*\*`(.*)`\*\*", (PAGES / "troubleshooting.md").read_text(), re.MULTILINE)
    of_others = {"command not found: drunet", "No matching distribution found for drunet-cli"}
    assert [message for message in messages if message not in source and message not in of_others] == []
    assert len(messages) > 20


def test_constraints_fix_what_pyproject_asks_for_at_a_version_that_it_allows() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(line) for line in chain(project["dependencies"], *(extras[name] for name in extras if name != "test"))
    ]
    lines = (REPOSITORY / ".github" / "constraints.txt").read_text().splitlines()
    fixed = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    assert [str(one) for one in wanted if one.name not in fixed or not one.specifier.contains(fixed[one.name])] == []
