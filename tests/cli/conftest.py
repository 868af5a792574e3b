"""Lines of logs without time and host."""

import pytest


@pytest.fixture(autouse=True)
def _lines_without_time_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drunet_cli.cli.console.log_prefix", lambda _: "")
