"""What Tab offers, asked as the shells' scripts ask: in the environment, by the words typed so far."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from drunet_cli.cli.app import main
from drunet_cli.cli.guide import TOPICS
from tests.cli.test_startup import HEAVY

PROGRAM: Final = f"""
import sys
from drunet_cli.cli.app import main
try:
    main([])
finally:
    print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def asked(line: str) -> dict[str, str]:
    """The environment in which bash asks what may stand at the end of a command line."""
    return {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_DRUNET_COMPLETE": "complete_bash"}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    """Ask in this process."""

    def ask(line: str) -> list[str]:
        for name, value in asked(line).items():
            monkeypatch.setenv(name, value)
        with suppress(SystemExit):
            main([])
        out, err = capsys.readouterr()
        assert err == ""
        return out.split()

    return ask


def cache_weights(name: str) -> None:
    folder = Path(os.environ["DRUNET_CACHE_DIR"]) / "weights"
    folder.mkdir()
    (folder / f"{name}.safetensors").touch()


def test_weights_are_offered_by_the_names_of_the_list(
    offered: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    cache_weights("mine")
    assert main(["weights", "list", "--json"]) == 0
    listed = [json.loads(row)["name"] for row in capsys.readouterr().out.splitlines()]
    assert {"brats2020", "mine"} <= set(listed)
    assert offered("drunet segment --weights ") == listed


@pytest.mark.parametrize(
    "line",
    [
        "drunet segment --weights brats2020 --weights m",
        "drunet export --weights m",
        "drunet train cases -o run --init m",
        "drunet weights info m",
        "drunet weights path m",
    ],
)
def test_weights_are_offered_wherever_they_are_named(line: str, offered: Callable[[str], list[str]]) -> None:
    cache_weights("mine")
    assert offered(line) == ["mine"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("drunet segment --weights ./", []),  # bash then offers files
        ("drunet segment --device c", ["cpu", "cuda"]),
        ("drunet export --format ", ["onnx", "keras", "safetensors"]),
        ("drunet export --head s", ["softmax"]),
        ("drunet evaluate --convention l", ["lesionwise"]),
        ("drunet segment --labels brats2023 --window f", ["full"]),
        ("drunet segment --outp", ["--output"]),
        ("drunet guide e", [topic for topic in TOPICS if topic.startswith("e")]),
        ("drunet segment -output x --engine t", ["torch"]),  # its mistake is told when it runs
    ],
)
def test_words_that_begin_so_are_offered(line: str, words: list[str], offered: Callable[[str], list[str]]) -> None:
    assert offered(line) == words


def test_cache_that_cannot_be_found_leaves_the_known_names(
    offered: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRUNET_CACHE_DIR", "~no-such-user/cache")
    assert "brats2020" in offered("drunet segment --weights ")


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    environment = {**os.environ, **asked("drunet export --weights ")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert ("brats2020" in done.stdout.split(), done.stderr.split()) == (True, [])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_for_a_shell_asks_drunet(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_DRUNET_COMPLETE", f"source_{shell}")
    with suppress(SystemExit):
        main([])
    out, err = capsys.readouterr()
    assert (f"_DRUNET_COMPLETE=complete_{shell}" in out, err) == (True, "")
