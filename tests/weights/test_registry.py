"""The weights that come with drunet: the file in the package, and that its name stands for nothing else."""

import shutil
from importlib import resources
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import safetensors

from drunet_cli.errors import MisuseError, WeightsError
from drunet_cli.io.volumes import file_sha256
from drunet_cli.weights import registry
from drunet_cli.weights.cache import import_weights, metadata_of, obtain, open_weights
from drunet_cli.weights.registry import BUNDLED, COMPACT, ENTRIES, cache_folder, cached_path, weights_path
from tests.support import GOLDEN_WEIGHTS

MOST_BYTES: Final = 10e6  # issue 11: the wheel stays below 12 MB


def _put_into_cache() -> Path:
    """The golden weights as a file of the bundled name, as an earlier drunet may have left it."""
    path = import_weights(GOLDEN_WEIGHTS, name="other")
    return Path(shutil.move(path, cached_path(COMPACT)))


def test_the_package_holds_the_file() -> None:
    """As a wheel must have it: hatch puts what lies in the package into it."""
    file = resources.files("drunet_cli") / "weights" / "compact.safetensors"
    assert file.is_file()
    assert Path(str(file)) == weights_path(COMPACT)


def test_the_file_is_small_and_of_half_precision() -> None:
    path = weights_path(COMPACT)
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
    for part in ("trained on ten cases", "synthetic", "for trying and testing, not for research results"):
        assert part in metadata.origin
    for part in ("10.7937/jc8x-9874", "arXiv:2107.02314", "Baid"):
        assert part in metadata.origin
        assert part in metadata.citation
    assert metadata.window == "auto"


def test_a_name_is_bundled_or_fetched_not_both() -> None:
    assert not BUNDLED.keys() & ENTRIES.keys()


def test_a_file_in_the_cache_never_stands_for_bundled_weights() -> None:
    cached = _put_into_cache()
    expected = file_sha256(BUNDLED[COMPACT].path)
    assert file_sha256(cached) != expected
    assert open_weights(COMPACT).sha256 == expected
    assert obtain(COMPACT) == metadata_of(COMPACT)[0] == weights_path(COMPACT) == BUNDLED[COMPACT].path
    assert registry.cached_names() == []


def test_nothing_is_imported_under_a_bundled_name() -> None:
    for overwrite in (False, True):
        with pytest.raises(MisuseError, match="weights compact come with drunet and are not replaced"):
            import_weights(GOLDEN_WEIGHTS, name=COMPACT, overwrite=overwrite)
    assert not cache_folder().exists()


def test_a_damaged_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_PACKAGED", tmp_path)
    for content in (None, b"", BUNDLED[COMPACT].path.name.encode() * 100):
        if content is not None:
            weights_path(COMPACT).write_bytes(content)
        with pytest.raises(WeightsError, match=r"compact\.safetensors: .* install drunet-cli again"):
            open_weights(COMPACT)
