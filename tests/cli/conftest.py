"""What every test of the command line has."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _lines_without_time_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drunet_cli.cli.console.log_prefix", lambda _: "")


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lie in the folder of the test."""
    monkeypatch.chdir(tmp_path)
