"""Named weights: where they come from, under which terms, and where their files are. No torch, no network.

Bundled weights are in the package; a file of such a name in the cache is never looked at. All others are in the cache, as
`weights/NAME.safetensors`.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import drunet_cli
from drunet_cli.errors import WeightsError, join_some

DEFAULT: Final = "brats2020"
COMPACT: Final = "compact"
PAPER: Final = (
    "Colman J, Zhang L, Duan W, Ye X. DR-Unet104 for Multimodal MRI Brain Tumor Segmentation. "
    "BrainLes 2020, LNCS 12659, 2021. arXiv:2011.02840"
)
# The published inference code, evaluate.py, runs with Keras' default; train.py sets 1e-5.
PUBLISHED_BN_EPSILON: Final = 1e-3
BRATS2021: Final = (
    "Baid U, Ghodasara S, Mohan S, et al. The RSNA-ASNR-MICCAI BraTS 2021 Benchmark on Brain Tumor Segmentation and "
    "Radiogenomic Classification. 2021. arXiv:2107.02314. Data: TCIA, doi:10.7937/jc8x-9874"
)
_PACKAGED: Final = Path(drunet_cli.__file__).parent / "weights"
SUFFIX: Final = ".safetensors"
ENSEMBLE_FILE: Final = "ensemble.json"  # in a folder of several weights, which it lists
NO_CACHE: Final = "there is no home folder for the cache of weights; set DRUNET_CACHE_DIR to a folder"
_FILE_SUFFIXES: Final = (".h5", ".hdf5", SUFFIX)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A set of weights that drunet knows how to fetch.

    summary: the description in a few words. url: where drunet fetches the file; page: where a person with a browser gets it.
    url_variable: environment variable that names a mirror. source_sha256: of the fetched file, None where its authors publish
    none.
    """

    name: str
    summary: str
    description: str
    url: str
    page: str
    url_variable: str
    megabytes: int
    licence: str
    citation: str
    base_width: int
    bn_epsilon: float
    dropout: float | None
    source_sha256: str | None


ENTRIES: Final[Mapping[str, Entry]] = {
    DEFAULT: Entry(
        name=DEFAULT,
        summary="the published DR-Unet104",
        description="DR-Unet104 as published by its authors, trained on the BraTS 2020 training data",
        url="https://drive.usercontent.google.com/download?id=1v8b5dPEa9nTVVkzjdjX6exZo4anlOhTH&export=download",
        page="https://drive.google.com/file/d/1v8b5dPEa9nTVVkzjdjX6exZo4anlOhTH/view",
        url_variable="DRUNET_WEIGHTS_URL",
        megabytes=307,
        licence="for your own research if you cite the paper (the authors' README)",
        citation=PAPER,
        base_width=16,
        bn_epsilon=PUBLISHED_BN_EPSILON,
        dropout=None,  # the paper preferred 0.2, the file's name says 0.5, and nothing else does
        source_sha256=None,
    )
}


@dataclass(frozen=True, kw_only=True)
class Bundled:
    """A set of weights that comes with drunet: nothing is fetched, nothing can be imported under its name.

    summary: the description in a few words. caveat: the purpose of the weights, which stands beside every result. sha256: of
    the file, by which sidecars and tables name it; earlier_sha256: of files that earlier versions had under this name. The
    file's metadata hold the other facts; their origin begins with the description, so that every sidecar has it.
    """

    name: str
    summary: str
    caveat: str
    sha256: str
    earlier_sha256: tuple[str, ...]
    description: str
    licence: str
    citation: str

    @property
    def path(self) -> Path:
        """The file in the package."""
        return _PACKAGED / f"{self.name}{SUFFIX}"


_FOR_TRYING: Final = "trying and testing, not for research results"
BUNDLED: Final[Mapping[str, Bundled]] = {
    COMPACT: Bundled(
        name=COMPACT,
        summary=f"small: for {_FOR_TRYING}",
        caveat=_FOR_TRYING,
        sha256="4fd97e655d261e87bc1b94eb4b436d43b45571c35fe0eb8ba3500cb21c7bf787",
        earlier_sha256=(
            "7713f27796cf63987e662c97fdc1b88ee08ba83771cfb8a1eb7cafa58dbaef7a",
            "1cb542ed78f94e2bafa90cf57b27b4bfff973ced0ec6fd411fbed04cd6072dbb",
        ),
        description=(
            "a small DR-Unet104 that comes with drunet, trained on nineteen cases of BraTS 2021 and 2023 mixed with synthetic "
            f"ones: for {_FOR_TRYING}"
        ),
        licence=(
            "cite the paper and BraTS 2021 (data from TCIA, doi:10.7937/jc8x-9874; "
            "believed to be under CC BY 4.0, which was not verified)"
        ),
        citation=f"{PAPER}. Trained on: {BRATS2021}",
    )
}


def caveat_of(sha256s: Iterable[str]) -> str:
    """The words that go beside every result of these weights, by the SHA-256 of their files; empty where none do."""
    used = set(sha256s)
    known = [bundled for bundled in BUNDLED.values() if used & {bundled.sha256, *bundled.earlier_sha256}]
    return "; ".join(f"weights {bundled.name}: for {bundled.caveat}" for bundled in known)


def cache_folder() -> Path:
    """Folder of the weights: below DRUNET_CACHE_DIR if set, else below the platform's cache folder.

    Raises WeightsError where that needs a home folder and there is none.
    """
    import platformdirs  # here, as most commands import this module for a name alone

    chosen = os.environ.get("DRUNET_CACHE_DIR")
    try:
        root = Path(chosen or platformdirs.user_cache_path("drunet"))
        return root.expanduser().absolute() / "weights"
    except RuntimeError as error:  # ~nobody; or a user id without name and HOME, as containers may run under
        if chosen:
            reason = "there is no such home folder; set DRUNET_CACHE_DIR to a full path"
            raise WeightsError(f"DRUNET_CACHE_DIR {chosen}: {reason}") from error
        raise WeightsError(NO_CACHE) from error


def has_cache() -> bool:
    """Whether there can be a cache: DRUNET_CACHE_DIR names its folder, rightly or not, or there is a home folder."""
    try:
        cache_folder()
    except WeightsError:
        return bool(os.environ.get("DRUNET_CACHE_DIR"))
    return True


def cached_path(name: str) -> Path:
    """Path of the weights of this name in the cache, whether they are there or not.

    Raises WeightsError for an illegal name, and where there is no folder for the cache.
    """
    check_name(name)
    return cache_folder() / f"{name}{SUFFIX}"


def check_name(name: str) -> None:
    """Raise WeightsError for a name that no weights in the cache can have."""
    if not _NAME.fullmatch(name) or is_file_name(name):
        raise WeightsError(f"weights name {name!r}: use letters, digits, '.', '_' and '-', and no suffix of a weights file")


def weights_path(name: str) -> Path:
    """Path of these weights, whether they are there or not: in the package if they are bundled, else in the cache.

    Raises WeightsError as `cached_path` does.
    """
    return BUNDLED[name].path if name in BUNDLED else cached_path(name)


def cached_names() -> list[str]:
    """Names of all weights that are used from the cache, sorted."""
    names = (path.name.removesuffix(SUFFIX) for path in cache_folder().glob(f"[!.]*{SUFFIX}") if is_file(path))
    return sorted(name for name in names if name not in BUNDLED)


def known_names() -> set[str]:
    """Names of all weights that can be used or fetched."""
    return {*ENTRIES, *BUNDLED, *(cached_names() if has_cache() else ())}


def is_file_name(weights: str) -> bool:
    """Whether these words name a file, and not weights in the registry or the cache."""
    return weights.lower().endswith(_FILE_SUFFIXES) or os.sep in weights


def members_of(weights: str) -> tuple[str, ...]:
    """Return the files of a folder that lists several weights, such as that of a cross-validation; of other words, these alone.

    Raises WeightsError for a list that is damaged, and for a cross-validation that is not finished.
    """
    folder = Path(weights)
    path = folder / ENSEMBLE_FILE
    if not os.path.isdir(weights) or weights in known_names():
        return (weights,)
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weights"]
        if not files or not all(isinstance(file, str) for file in files):
            raise ValueError("lists no weights")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{weights}: is a folder without {ENSEMBLE_FILE}, which a cross-validation writes when all folds are done; give a "
            "weights file, such as best.safetensors of a training"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read, or is damaged: {error}; name the weights one by one") from error
    return tuple(str(folder / file) for file in files)


def check_available(weights: str) -> None:
    """Raise WeightsError for weights that cannot be had: an absent file, an unknown name, a download while offline or from what
    is no URL.
    """
    if is_file_name(weights):
        check_file(Path(weights))
    elif weights not in BUNDLED and not is_file(cached_path(weights)):
        from drunet_cli.weights.download import check_url  # urllib.request, which completion by Tab does without

        entry = find_entry(weights)
        check_url(source_url(entry))
        if is_offline() and not source_url(entry).startswith("file:"):
            raise WeightsError(
                f"weights {weights} are not in the cache, and DRUNET_OFFLINE forbids downloading", details=other_ways(entry)
            )


def is_offline() -> bool:
    """Whether DRUNET_OFFLINE forbids downloads."""
    return os.environ.get("DRUNET_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")


def is_file(path: Path) -> bool:
    """Whether a file is there and can be seen; False too for a name too long, and in a folder that may not be entered."""
    return os.path.isfile(path)


def check_file(path: Path) -> None:
    """Raise WeightsError unless this is a file that can be read."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # opening it need never end
            raise WeightsError(f"{path}: is a pipe, which cannot be read twice; write the weights to a file first")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such weights file") from error
    except IsADirectoryError as error:
        if (path / ENSEMBLE_FILE).exists():
            files = join_some(members_of(str(path)))
            raise WeightsError(f"{path}: is a folder of several weights; give one of them: {files}") from error
        raise WeightsError(
            f"{path}: is a folder; give the weights file in it, such as best.safetensors of a training"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def find_entry(name: str) -> Entry:
    """The registry's entry of weights to be fetched. Raises WeightsError that lists the names there are."""
    if name not in ENTRIES:
        if os.path.isdir(name):
            check_file(Path(name))
        known = ", ".join(sorted(known_names()))
        raise WeightsError(f"weights {name!r} are not known; known: {known}, or give a .h5 or .safetensors file")
    return ENTRIES[name]


def source_url(entry: Entry) -> str:
    """The address to fetch from: the mirror that the environment names, else the authors' link."""
    return os.environ.get(entry.url_variable) or entry.url


def shown_source(entry: Entry) -> str:
    """The source of the weights, in messages: the authors' page, or the mirror."""
    from drunet_cli.weights.download import shown_url

    url = source_url(entry)
    return entry.page if url == entry.url else shown_url(url)


def other_ways(entry: Entry) -> tuple[str, ...]:
    """Ways to have weights where a download is not possible: details of an error, of 80 columns at most but for the folder."""
    return (
        f"By hand: open this page on a machine with internet (about {entry.megabytes} MB),",
        f"  {entry.page}",
        f"  copy the file here, and run: drunet weights import FILE --name {entry.name}",
        f"From a mirror: set {entry.url_variable} to its https:// or file:// URL",
        f"To try drunet without: drunet segment --weights {COMPACT} (not for research)",
        f"Cache folder (DRUNET_CACHE_DIR): {cache_folder()}",
    )
