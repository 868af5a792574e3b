"""Every `drunet` command of the README and of the help runs, in a folder that holds what its reader would have."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Final

import nibabel as nib
import pytest

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.cli.app import main
from tests.cli.test_help import COMMANDS
from tests.support import GOLDEN_IMAGES, GOLDEN_LABELS, GOLDEN_WEIGHTS, image_options, open_image

README: Final = (Path(__file__).parents[1] / "README.md").read_text()
AUTHORS_FILE: Final = "weights_brats_dr_unet_test_model_DO_05.h5"
NAMES_OF_THE_SCANNER: Final = {Modality.FLAIR: "FLAIR", Modality.T1CE: "T1w_CE", Modality.T1: "T1w", Modality.T2: "T2w"}
# What a shell or a scheduler would put there, and where the README's absolute folder lies here.
PLACEHOLDERS: Final = {
    "$SLURM_ARRAY_TASK_ID": "1",
    "K/4": "1/4",
    "/data/BraTS2021": "BraTS2021_TrainingData",
    "--mc-samples 20": "--mc-samples 2",  # a tenth of the time
    "--folds 5": "--folds 2",  # as many as there are cases here
}


def commands_of(*texts: str) -> list[str]:
    """Each once, without what runs it, such as srun or xargs. The demo has tests of its own; containers are not built here."""
    lines = [line.strip() for text in texts for line in text.replace("\\\n", " ").splitlines()]
    found = [
        re.search(r"(?:^|[ /])(?:drunet|-m drunet_cli) ((?:segment|convert|evaluate|report|train|export|weights) .*)", line)
        for line in lines
    ]
    foreign = ("#", "docker", "apptainer")
    return list(
        dict.fromkeys(match[1] for line, match in zip(lines, found, strict=True) if match and not line.startswith(foreign))
    )


OF_THE_README: Final = commands_of(*re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
OF_THE_HELP: Final = commands_of(
    *(line for command in COMMANDS.values() for line in command.help.splitlines() if line.startswith(("drunet ", "torchrun ")))
)


def _place(folder: Path, names: dict[Modality, str], *, segmentation: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for modality, name in names.items():
        shutil.copyfile(GOLDEN_IMAGES[modality], folder / f"{name}.nii.gz")
    if segmentation is not None:
        shutil.copyfile(GOLDEN_LABELS, folder / f"{segmentation}.nii.gz")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's reader has, and what earlier commands have left."""
    folder = tmp_path_factory.mktemp("reader")
    _place(folder, {modality: str(modality) for modality in CHANNELS})
    _place(folder, {modality: f"p01_{modality}" for modality in CHANNELS}, segmentation="p01_reference")
    for name, modality in (("t1", Modality.T1), ("t1c", Modality.T1CE), ("t2", Modality.T2), ("f", Modality.FLAIR)):
        nib.save(open_image(GOLDEN_IMAGES[modality]), folder / f"{name}.nii")
    _place(folder / "patients" / "p02", {modality: f"p02_{name}" for modality, name in NAMES_OF_THE_SCANNER.items()})
    for case in ("BraTS2021_00000", "p01"):
        names = {modality: f"{case}_{modality}" for modality in CHANNELS}
        _place(folder / "BraTS2021_TrainingData" / case, names, segmentation=f"{case}_seg")
    case = "BraTS2021_00001"
    _place(folder / "BraTS2021_ValidationData" / case, {modality: f"{case}_{modality}" for modality in CHANNELS})
    for name in (AUTHORS_FILE, "mine.h5"):
        shutil.copyfile(GOLDEN_WEIGHTS, folder / name)
    quiet = ["--quiet", "--weights", str(GOLDEN_WEIGHTS)]
    training = str(folder / "BraTS2021_TrainingData")
    assert main(["segment", training, "-o", str(folder / "results"), "--uncertainty", *quiet]) == 0
    assert main(["segment", *image_options(), "-o", str(folder / "p01_seg.nii.gz"), "--no-sidecar", *quiet]) == 0
    assert main(["convert", "nii2png", training, "-o", str(folder / "slices"), "--quiet"]) == 0
    shutil.copytree(folder / "slices" / "masks", folder / "slices" / "predictions")
    for weights in (folder / "run" / "best.safetensors", folder / "measured.safetensors"):
        assert main(["export", "--weights", str(GOLDEN_WEIGHTS), "-o", str(weights), "--quiet"]) == 0
    return folder


@pytest.mark.usefixtures("golden_is_published")
@pytest.mark.parametrize("command", dict.fromkeys([*OF_THE_README, *OF_THE_HELP]))
def test_a_command_of_the_readme_or_of_the_help_runs(
    command: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DRUNET_WEIGHTS_URL", GOLDEN_WEIGHTS.as_uri())
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    words = shlex.split(command, comments=True)
    if words[0] == "train":  # what it would train takes hours
        words += ["--dry-run", "--batch-size", "2"]
    if {"info", "path"} & set(words):
        assert main(["weights", "download", "--quiet"]) == 0
    if "-o" in words:
        output = Path(words[words.index("-o") + 1])
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
    code = main(words)
    assert code == 0, capsys.readouterr().err


def test_the_readme_shows_every_command() -> None:
    shown = {command.split()[0] for command in OF_THE_README} | {"demo"}
    assert shown == {"convert", "demo", "evaluate", "export", "report", "segment", "train", "weights"}


def test_links_within_the_readme_lead_to_its_headings() -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    links = set(re.findall(r"\]\(#([^)]*)\)", README))
    assert len(links) > 10
    assert not links - headings
