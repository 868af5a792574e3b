"""`drunet doctor`: what drunet would use of this machine, and what would stop it."""

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import typer

import drunet_cli
from drunet_cli.cli import options
from drunet_cli.cli.weights import PLACES, place_of
from drunet_cli.errors import DrunetError, MisuseError, OutputError, WeightsError, one_line
from drunet_cli.host import cpu_grants, cpu_name, granted_cpus, memory_grants
from drunet_cli.network.engine import EngineName, Precision, choose_engine, open_engine, settle_device
from drunet_cli.weights.registry import (
    COMPACT,
    DEFAULT,
    ENTRIES,
    cache_folder,
    cached_path,
    check_available,
    find_entry,
    is_offline,
    members_of,
    other_ways,
)

_DISTRIBUTION: Final = "drunet-cli"
_OF_EXTRA: Final = re.compile(r"([\w.-]+).*;.*\bextra == [\"'](\w+)[\"']")
_FOR_DEVELOPERS: Final = "test"
_LIBRARIES: Final = ("torch", "onnxruntime", "openvino", "numpy", "scipy", "nibabel")
_NEEDED: Final = ("numpy", "scipy", "nibabel")  # by every run; a missing or broken engine has another in its place
_MODULES: Final = {"simpleitk": "SimpleITK"}  # where another name is imported than was installed
_SLICE: Final = (1, 80, 80, 4)  # of a size that the network takes


def doctor(weights: options.WeightsOfSegment = None, device: options.Device = "auto", json: options.Json = False) -> None:
    """Show what drunet would use of this machine, and what would stop it.

    A small slice is computed with the weights that come with drunet. The exit
    code is the one that drunet segment would end with before it reads an image:
    4 for weights, 5 for the device, 2 for a library that is broken. Send all of
    it with a request for help.

    drunet doctor
    drunet doctor --weights compact --json
    """
    from drunet_cli.cli.console import Screen, fields_table, result_json

    screen = Screen()
    problems: list[DrunetError] = [
        MisuseError(f"{name} cannot be imported ({reason}), and no image is read without {name}; install drunet again")
        for name in _NEEDED
        if (reason := _why_broken(name))
    ]
    document = {
        "drunet": drunet_cli.__version__,
        "python": platform.python_version(),
        "installed": {"drunet": str(Path(drunet_cli.__file__).parent), "python": sys.executable},
        "system": platform.platform(),
        "libraries": {name: _state(name) for name in _LIBRARIES},
        "processor": cpu_name(),
        "cpus": {"granted": granted_cpus(), "by": cpu_grants()},
        "memory_bytes": memory_grants(),
        **_computing(device, screen.warning, problems),
        "weights": [_described(name, problems) for each in weights or [DEFAULT] for name in _members(each, problems)],
        "cache": _cache(),
        "offline": is_offline(),
        "extras": _extras(),
    }
    if json:
        result_json({**document, "problems": [{"error": str(each), "exit_code": each.exit_code} for each in problems]})
    else:
        screen.table(fields_table(_in_words(document)))
    for error in sorted(problems, key=lambda each: each.exit_code):  # as `segment`, which looks for weights first
        screen.error(str(error), error.details)
    if problems:
        raise typer.Exit(min(each.exit_code for each in problems))


def _computing(device: str, on_warning: Callable[[str], None], problems: list[DrunetError]) -> dict[str, Any]:
    """The engine that `segment` would take, tried on a slice, and the GPUs that PyTorch sees. Adds failures to problems."""
    tried: dict[str, Any] = {"gpus": {}, "engine": None}
    with suppress(ImportError, OSError):  # told with the libraries; a CPU does without PyTorch
        from drunet_cli.network.torch_engine import visible_gpus

        tried["gpus"] = visible_gpus()
    try:
        import numpy as np

        from drunet_cli.weights.cache import open_weights

        name = choose_engine(EngineName.AUTO, device=device, precision=Precision.AUTO)
        settled = settle_device(name, device, on_warning=on_warning)
        checkpoint = open_weights(COMPACT)
        engine = open_engine(
            name,
            checkpoint,
            device=settled,
            precision=Precision.AUTO,
            batch_size=None,
            threads=granted_cpus(),
            named=False,
            on_warning=on_warning,
        )
        begin = time.perf_counter()
        engine.classes(np.full(_SLICE, 127, dtype=np.uint8))
        seconds = time.perf_counter() - begin
    except DrunetError as error:
        problems.append(error)
        return tried
    except ImportError as error:
        reason = one_line(str(error))
        problems.append(MisuseError(f"nothing can compute: {reason}; see the libraries, and install drunet again"))
        return tried
    tried["engine"] = {
        "name": engine.name,
        "versions": dict(engine.versions),
        "device": engine.device,
        "device_name": engine.device_name,
        "precision": engine.precision,
        "threads": engine.threads,
        "slices_at_once": engine.batch_size,
        "seconds_of_a_small_slice": round(seconds, 3),
    }
    return tried


def _members(weights: str, problems: list[DrunetError]) -> tuple[str, ...]:
    try:
        return members_of(weights)
    except WeightsError as error:
        problems.append(error)
        return ()


def _described(name: str, problems: list[DrunetError]) -> dict[str, str]:
    """A set of weights and where it is. Adds to problems the reasons against its use."""
    from drunet_cli.io.atomic import check_writable
    from drunet_cli.weights.cache import metadata_of

    where = place_of(name)
    try:
        if where != "not-downloaded":
            metadata_of(name)
        else:
            check_available(name)
            check_writable(cached_path(name), overwrite=True)
            _check_room(name)
    except OutputError as error:
        ways = other_ways(find_entry(name))
        problems.append(WeightsError(f"weights {name} are not in the cache, and cannot be downloaded: {error}", details=ways))
    except WeightsError as error:
        problems.append(error)
    return {"name": name, "where": where}


def _check_room(name: str) -> None:
    """Raise OutputError where the cache has no room for a download: the authors' file, and as much that drunet makes of it."""
    cache, needed_bytes = _cache(), 2 * ENTRIES[name].megabytes * 10**6
    if cache["free_bytes"] < needed_bytes:
        free_mb = cache["free_bytes"] / 1e6
        raise OutputError(f"{cache['folder']}: has {free_mb:.0f} MB free, and {needed_bytes / 1e6:.0f} MB are needed")


def _weights_in_words(name: str, where: str) -> str:
    size = (
        f" (about {ENTRIES[name].megabytes} MB when they are first used)"
        if where == "not-downloaded" and name in ENTRIES
        else ""
    )
    return f"{name}: {PLACES[where]}{size}"


def _cache() -> dict[str, Any]:
    """The folder of downloaded weights; None where there can be none."""
    try:
        folder = cache_folder()
    except WeightsError:
        return {"folder": None, "can_be_written": False, "free_bytes": None}
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    on_disk = next(parent for parent in (there, *there.parents) if os.path.exists(parent))  # `there` may be a broken link
    return {
        "folder": str(folder),
        "can_be_written": there.is_dir() and os.access(there, os.W_OK | os.X_OK),
        "free_bytes": shutil.disk_usage(on_disk).free,
    }


def library_versions() -> dict[str, str | None]:
    """The version of each library that computes; None where it is not installed."""
    return {name: _version(name) for name in _LIBRARIES}


def _extras() -> dict[str, dict[str, str | None]]:
    """The packages of each extra with their state, None for those that are not installed, as the installation has them."""
    from importlib import metadata

    try:
        requirements = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # sources that were not installed
        return {}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        if (found := _OF_EXTRA.fullmatch(requirement)) and found[2] != _FOR_DEVELOPERS:
            extras.setdefault(found[2], {})[found[1]] = _state(found[1])
    return extras


def _state(package: str) -> str | None:
    """The version of a package, and why it cannot be imported where that is so; None where it is not installed.

    A version alone says little: a library of the system may be missing, or too old.
    """
    version = _version(package)
    return f"{version} (cannot be imported: {reason})" if version and (reason := _why_broken(package)) else version


_OF_BROKEN_PACKAGES: Final = (ImportError, OSError, TypeError)  # OSError: of ctypes; TypeError: of a protobuf that is too old


def _why_broken(package: str) -> str:
    """Why a package cannot be imported, in one line; empty where it can."""
    try:
        import_module(_MODULES.get(package, package))
    except _OF_BROKEN_PACKAGES as error:
        return one_line(str(error)) or type(error).__name__
    return ""


def _version(package: str) -> str | None:
    from importlib import metadata  # brings the parser of e-mail

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _in_gb(grants: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n_bytes / 1e9:.1f}" for name, n_bytes in grants.items())


def _in_words(document: Mapping[str, Any]) -> dict[str, str]:
    """The document as a person reads it, by label."""
    engine, cache, gpus, memory = (document[key] for key in ("engine", "cache", "gpus", "memory_bytes"))
    computes = "nothing, see below"
    if engine is not None:
        versions = ", ".join(f"{name} {version}" for name, version in engine["versions"].items())
        took = f"{engine['seconds_of_a_small_slice']} s for a small slice"
        computes = f"{versions} on {engine['device']} in {engine['precision']}, {engine['threads']} threads; {took}"
    grants = ", ".join(f"{name} {n}" for name, n in document["cpus"]["by"].items())
    words = {
        "drunet": f"{document['drunet']}, Python {document['python']}",
        "installed": f"{document['installed']['drunet']}, run by {document['installed']['python']}",
        "libraries": ", ".join(f"{name} {version}" for name, version in document["libraries"].items()),
        "system": document["system"],
        "processor": document["processor"],
        "CPUs": f"{document['cpus']['granted']} granted ({grants})",
        "memory": f"{min(memory.values()) / 1e9:.1f} GB granted ({_in_gb(memory)})" if memory else "unknown",
        "GPUs": "; ".join(f"{device}: {name}" for device, name in gpus.items()) or "none that PyTorch can use",
        "computes": computes,
        "weights": "; ".join(_weights_in_words(**each) for each in document["weights"]),
        "cache": "none" if cache["folder"] is None else cache["folder"],
        "downloads": "forbidden by DRUNET_OFFLINE" if document["offline"] else "allowed",
    }
    if cache["folder"] is not None:
        writable = "can be written" if cache["can_be_written"] else "cannot be written"
        words["cache"] += f" ({writable}, {cache['free_bytes'] / 1e9:.1f} GB free)"
    for extra, packages in document["extras"].items():
        words[f"extra {extra}"] = ", ".join(f"{name} {version or 'not installed'}" for name, version in packages.items())
    return words
