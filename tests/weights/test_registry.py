"""The weights that come with drunet: the file in the package is what the registry says."""

from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import safetensors

from drunet_cli.cli.app import main
from drunet_cli.errors import WeightsError
from drunet_cli.io.inputs import sha256_of
from drunet_cli.weights.cache import metadata_of, open_weights
from drunet_cli.weights.registry import BUNDLED, COMPACT, ENTRIES, NO_CACHE, members_of, weights_path
from tests.support import GOLDEN_WEIGHTS

MOST_BYTES: Final = 10e6  # the wheel stays below 12 MB


def test_the_package_holds_a_small_file_of_half_precision() -> None:
    """As a wheel must have it: hatch puts what lies in the package into it."""
    path = Path(str(resources.files("drunet_cli") / "weights" / "compact.safetensors"))
    assert path == weights_path(COMPACT)
    assert path.stat().st_size <= MOST_BYTES
    with safetensors.safe_open(path, framework="numpy") as file:
        formats = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  # not a dict
    assert formats == {"F16"}


def test_bundled_weights_open_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUNET_CACHE_DIR", str(tmp_path / "absent"))
    monkeypatch.setenv("DRUNET_OFFLINE", "1")
    checkpoint = open_weights(COMPACT)
    assert checkpoint.metadata.base_width == 4
    assert {array.dtype for array in checkpoint.state.values()} == {np.dtype(np.float32)}
    assert not (tmp_path / "absent").exists()


def test_the_file_says_what_the_registry_says() -> None:
    metadata, entry = metadata_of(COMPACT)[1], BUNDLED[COMPACT]
    assert (metadata.name, metadata.licence, metadata.citation) == (entry.name, entry.licence, entry.citation)
    assert metadata.origin.startswith(entry.description)
    for part in ("trained on nineteen cases", "synthetic", "for trying and testing, not for research results"):
        assert part in metadata.origin
    for part in ("10.7937/jc8x-9874", "arXiv:2107.02314", "Baid"):
        assert part in metadata.origin
        assert part in metadata.citation
    assert metadata.window == "auto"
    assert sha256_of(weights_path(COMPACT)) == entry.sha256
    assert not BUNDLED.keys() & ENTRIES.keys()


def test_without_a_home_folder_only_what_needs_the_cache_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "DRUNET_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pytest.importorskip("pwd"), "getpwuid", {}.__getitem__)  # the user id has no name either
    for command in ("path brats2020", "download", f"import {GOLDEN_WEIGHTS} --name mine"):
        assert main(["weights", *command.split()]) == 4
        assert capsys.readouterr().err == f"Error: {NO_CACHE}\n"
    assert main(["weights", "list"]) == 0
    out, err = capsys.readouterr()
    assert "compact" in out
    assert err == f"Warning: {NO_CACHE}\n"
    for name in ("brats2020", "compact"):
        assert main(["weights", "info", name]) == 0
    monkeypatch.setenv("DRUNET_CACHE_DIR", "~/cache")
    assert main(["weights", "list"]) == 4
    assert "set DRUNET_CACHE_DIR to a full path" in capsys.readouterr().err


def test_folder_that_lists_several_weights_stands_for_them_and_a_known_name_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("cv", COMPACT, "run"):
        Path(folder).mkdir()
    for folder in ("cv", COMPACT):
        (Path(folder) / "ensemble.json").write_text('{"weights": ["fold_1/last.safetensors", "fold_2/last.safetensors"]}')
    assert members_of("cv") == ("cv/fold_1/last.safetensors", "cv/fold_2/last.safetensors")
    assert [members_of(name) for name in (COMPACT, "unknown", "x.h5")] == [(COMPACT,), ("unknown",), ("x.h5",)]
    with pytest.raises(WeightsError, match=r"^run: is a folder without ensemble\.json, which a cross-validation writes when"):
        members_of("run")
    for damaged in ("", "[]", '{"weights": []}', '{"weights": [1]}', "{}"):
        (tmp_path / "cv" / "ensemble.json").write_text(damaged)
        with pytest.raises(WeightsError, match=r"^cv/ensemble\.json: cannot be read, or is damaged"):
            members_of("cv")
