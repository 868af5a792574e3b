"""Named weights: where they come from, under which terms, and where the cache keeps them. No torch, no network.

The cache holds `weights/NAME.safetensors`, put there by a rename of a complete and verified file: whoever finds that name may
use it, without a lock, also where the cache is read-only.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drunet_cli.errors import WeightsError

DEFAULT: Final = "brats2020"
PAPER: Final = (
    "Colman J, Zhang L, Duan W, Ye X. DR-Unet104 for Multimodal MRI Brain Tumor Segmentation. "
    "BrainLes 2020, LNCS 12659, 2021. arXiv:2011.02840"
)
# The published inference code, evaluate.py, runs with Keras' default; train.py sets 1e-5.
PUBLISHED_BN_EPSILON: Final = 1e-3
PUBLISHED_BASE_WIDTH: Final = 16
SUFFIX: Final = ".safetensors"
_FILE_SUFFIXES: Final = (".h5", ".hdf5", SUFFIX)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A set of weights that drunet knows how to fetch.

    source_sha256: of the source file, None where its authors publish none. url_variable: environment variable of a mirror.
    """

    name: str
    description: str
    url: str
    url_variable: str
    megabytes: int
    licence: str
    citation: str
    bn_epsilon: float
    dropout: float | None
    source_sha256: str | None


ENTRIES: Final[Mapping[str, Entry]] = {
    DEFAULT: Entry(
        name=DEFAULT,
        description="DR-Unet104 as published by its authors, trained on the BraTS 2020 training data",
        url="https://drive.usercontent.google.com/download?id=1v8b5dPEa9nTVVkzjdjX6exZo4anlOhTH&export=download",
        url_variable="DRUNET_WEIGHTS_URL",
        megabytes=307,
        licence="for your own research if you cite the paper (the authors' README)",
        citation=PAPER,
        bn_epsilon=PUBLISHED_BN_EPSILON,
        dropout=None,  # the paper preferred 0.2, the file's name says 0.5, and nothing else does
        source_sha256=None,
    )
}


def cache_folder() -> Path:
    """Folder of the weights: below DRUNET_CACHE_DIR if set, else below the platform's cache folder."""
    import platformdirs  # not needed by every command that knows the name of the default weights

    root = Path(os.environ.get("DRUNET_CACHE_DIR") or platformdirs.user_cache_path("drunet"))
    try:
        return root.expanduser().absolute() / "weights"
    except RuntimeError as error:  # ~nobody
        raise WeightsError(f"DRUNET_CACHE_DIR {root}: {error}") from error


def cached_path(name: str) -> Path:
    """Where the weights of this name lie in the cache, be they there or not. Raises WeightsError for an illegal name."""
    if not _NAME.fullmatch(name) or is_file_name(name):
        raise WeightsError(f"weights name {name!r}: use letters, digits, '.', '_' and '-', and no suffix of a weights file")
    return cache_folder() / f"{name}{SUFFIX}"


def cached_names() -> list[str]:
    """Names of all weights in the cache, sorted."""
    return sorted(path.name.removesuffix(SUFFIX) for path in cache_folder().glob(f"[!.]*{SUFFIX}"))


def is_file_name(weights: str) -> bool:
    """Whether `--weights` was given a file and not a name."""
    return weights.lower().endswith(_FILE_SUFFIXES) or os.sep in weights


def check_available(weights: str) -> None:
    """Raise WeightsError for weights that cannot be had: an absent file, an unknown name, or a download while offline."""
    if is_file_name(weights):
        check_file(Path(weights))
    elif not is_file(cached_path(weights)):
        entry = find_entry(weights)
        offline = os.environ.get("DRUNET_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        if offline and not source_url(entry).startswith("file:"):
            raise WeightsError(f"weights {weights} are not in the cache and DRUNET_OFFLINE is set; {by_hand(entry)}")


def is_file(path: Path) -> bool:
    """Whether a file is there and can be seen; unlike Path.is_file, no name and no folder makes it raise."""
    return os.path.isfile(path)  # noqa: PTH113


def check_file(path: Path) -> None:
    """Raise WeightsError unless this is a file that can be read."""
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such weights file") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def find_entry(name: str) -> Entry:
    """The registry's entry of this name. Raises WeightsError that lists the names there are."""
    if name not in ENTRIES:
        known = ", ".join(sorted({*ENTRIES, *cached_names()}))
        raise WeightsError(f"weights {name!r} are not known; known: {known}, or give a .h5 or .safetensors file")
    return ENTRIES[name]


def source_url(entry: Entry) -> str:
    """Where the source file is fetched from: the mirror that the environment names, else the authors' link."""
    return os.environ.get(entry.url_variable) or entry.url


def by_hand(entry: Entry) -> str:
    """What to do where a download is not possible, in words for the end of an error message."""
    from drunet_cli.network.download import shown_url

    return (
        f"{cached_path(entry.name)} was not written; fetch {shown_url(source_url(entry))} by hand, "
        f"then run: drunet weights import FILE --name {entry.name}"
    )
