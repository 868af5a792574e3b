"""`drunet doctor`: what it says of this machine, and that its exit code is that of a segmentation."""

import json
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from drunet_cli.cli.app import main
from drunet_cli.errors import DeviceError
from drunet_cli.host import granted_cpus
from tests.support import GOLDEN_WEIGHTS

PYPROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DRUNET_OFFLINE", raising=False)


def examined(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> dict[str, Any]:
    assert main(["doctor", "--json", "--device", "cpu", *options]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_screen_tells_what_would_compute_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    labels = [line.split("  ")[0] for line in out.splitlines()]
    assert labels[:12] == [
        "drunet",
        "installed",
        "libraries",
        "system",
        "processor",
        "CPUs",
        "memory",
        "GPUs",
        "computes",
        "weights",
        "cache",
        "downloads",
    ]
    assert re.search(
        r"^computes +onnxruntime \S+ on cpu in float32, \d+ threads; [\d.]+ s for a small slice$", out, re.MULTILINE
    )
    assert re.search(r"^weights +brats2020: not downloaded \(about 307 MB when they are first used\)$", out, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_the_document_holds_what_the_machine_grants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = examined(capsys, "--weights", "compact", "--weights", str(GOLDEN_WEIGHTS))
    assert document["cpus"]["granted"] == document["engine"]["threads"] == granted_cpus()
    assert [weights["where"] for weights in document["weights"]] == ["bundled", "file"]
    assert document["cache"]["folder"] == str(tmp_path / "cache" / "weights")
    assert document["cache"]["can_be_written"] is True
    assert document["problems"] == []


def test_every_extra_of_the_installation_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    extras = examined(capsys)["extras"]
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert {"plot"} <= extras.keys() <= declared.keys() - {"test"}
    assert {"matplotlib"} == extras["plot"].keys()
    assert all(extras["plot"].values())


def test_a_package_that_is_there_and_cannot_be_imported_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as a library of the system that is missing: ImportError
    assert re.fullmatch(r"[\d.]+ \(cannot be imported: .*matplotlib.*\)", examined(capsys)["extras"]["plot"]["matplotlib"])


def test_a_broken_library_is_a_problem_where_no_run_does_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "nibabel", None)
        (problem,) = examined(capsys, "--weights", "compact", code=2)["problems"]
        assert problem["error"].startswith("nibabel cannot be imported (")
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "torch", None)
        broken.delitem(sys.modules, "drunet_cli.network.torch_engine", raising=False)
        document = examined(capsys, "--weights", "compact")
        assert "cannot be imported" in document["libraries"]["torch"]
        assert (document["gpus"], document["engine"]["name"], document["problems"]) == ({}, "onnxruntime", [])


@pytest.mark.parametrize(
    ("options", "offline", "code", "words"),
    [
        (["--weights", "no.h5"], "", 4, ["no.h5: no such weights file"]),
        (["--weights", "unheard-of"], "", 4, ["weights 'unheard-of' are not known"]),
        ([], "1", 4, ["weights brats2020 are not in the cache, and DRUNET_OFFLINE forbids downloading"]),
        (["--device", "mps"], "", 5, ["device mps: "]),
        (["--device", "mps"], "1", 4, ["weights brats2020 are not", "device mps: "]),
    ],
)
def test_what_would_stop_a_segmentation_is_told_with_its_exit_code(
    options: list[str],
    offline: str,
    code: int,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setenv("DRUNET_OFFLINE", offline)
    assert main(["doctor", *options]) == code
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if not line.startswith("  ")]
    assert len(told) == len(words)
    assert all(line.startswith(f"Error: {beginning}") for line, beginning in zip(told, words, strict=True))
    assert out.startswith("drunet ")


@pytest.mark.parametrize("in_the_way", ["file", "broken link"])
def test_a_cache_that_cannot_be_written_matters_where_weights_would_be_downloaded(
    in_the_way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if in_the_way == "file":
        (tmp_path / "cache").write_text("a file in the way")
    else:
        (tmp_path / "cache").symlink_to(tmp_path / "purged")
    problems = examined(capsys, code=4)["problems"]
    assert "cannot be downloaded: " in problems[0]["error"]
    document = examined(capsys, "--weights", "compact")
    assert (document["cache"]["can_be_written"], document["problems"]) == (False, [])


def test_a_disk_without_room_for_a_download_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=600_000_000))
    (problem,) = examined(capsys, code=4)["problems"]
    assert problem["error"].endswith(f"{tmp_path / 'cache' / 'weights'}: has 600 MB free, and 614 MB are needed")
    assert examined(capsys, "--weights", "compact")["problems"] == []


def test_an_engine_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DeviceError("device cpu: broken")

    monkeypatch.setattr("drunet_cli.cli.doctor.open_engine", fail)
    document = examined(capsys, code=5)
    assert (document["engine"], document["problems"]) == (None, [{"error": "device cpu: broken", "exit_code": 5}])


def test_the_version_is_told_with_those_of_what_computes_where_more_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    plain = capsys.readouterr().out
    for words in (["--version", "-v"], ["-v", "--version"]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == plain.strip()
        assert {line.split()[0] for line in lines[1:]} >= {"torch", "onnxruntime", "openvino", "numpy"}
    assert main(["-v", "doctor"]) == 2
    assert "a command has its own" in capsys.readouterr().err
