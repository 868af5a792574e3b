"""Recipes as TOML: changed by a file or by options, and kept as a file by every run."""

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from drunet_cli.errors import CaseError, MisuseError
from drunet_cli.training.recipe import RECIPES, Recipe
from drunet_cli.training.recipe_name import RecipeName

Settings = TypeVar("Settings")


def changed(recipe: Recipe, changes: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe with some numbers replaced. changes: nested as the TOML file is.

    Raises MisuseError that begins with `where`.
    """
    return _changed(recipe, changes, where, "")


def read_recipe(path: Path, *, otherwise: RecipeName = RecipeName.MODERN) -> Recipe:
    """The recipe of a TOML file: what it leaves out is that of the `recipe` it names, else of `otherwise`.

    Raises CaseError for a file that cannot be read, MisuseError for what it may not hold.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
        raise CaseError(f"{path}: is not TOML: {error}") from error
    name = document.get("recipe", otherwise)
    if name not in list(RecipeName):
        raise MisuseError(f"{path}: recipe {name!r}: is one of {', '.join(RecipeName)}")
    return changed(RECIPES[RecipeName(name)], document, where=f"{path}: ")


def encoded(recipe: Recipe) -> str:
    """The recipe as TOML that `read_recipe` reads back as an equal one."""
    lines, tables = [], []
    for item in fields(recipe):
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            tables += [
                "",
                f"[{item.name}]",
                *(f"{inner.name} = {_toml(getattr(value, inner.name))}" for inner in fields(value)),
            ]
        else:
            lines.append(f"{item.name} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The numbers in which two recipes differ, as lines such as `length.steps: 100, not 200`."""
    first, second = tomllib.loads(encoded(one)), tomllib.loads(encoded(other))
    return [f"{key}: {value}, not {other_value}" for key, value, other_value in _differing(first, second, "")]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], before: str) -> list[tuple[str, Any, Any]]:
    found = []
    for key, value in one.items():
        if isinstance(value, dict):
            found += _differing(value, other[key], f"{before}{key}.")
        elif value != other[key]:
            found.append((before + key, value, other[key]))
    return found


def _toml(value: Any) -> str:
    """Numbers, booleans, plain words and lists are written alike in TOML and JSON."""
    return json.dumps(value)


def _changed(settings: Settings, changes: Mapping[str, Any], where: str, before: str) -> Settings:
    known = {item.name: item for item in fields(settings)}  # type: ignore[arg-type]
    values = {}
    for name, value in changes.items():
        key = f"{before}{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; perhaps {before}{near[0]}" if near else f"; there are {', '.join(known)}"
            raise MisuseError(f"{where}{key}: no such setting{hint}")
        old = getattr(settings, name)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise MisuseError(f"{where}{key}: is a table of settings, [{key}]")
            values[name] = _changed(old, value, where, f"{key}.")
        else:
            values[name] = _checked(value, old, known[name].metadata, f"{where}{key}")
    return replace(settings, **values)  # type: ignore[type-var]


def _checked(value: Any, old: Any, limits: Mapping[str, Any], what: str) -> Any:
    """The value in the type of the old one. Raises MisuseError."""
    if isinstance(old, StrEnum):
        kinds = type(old)
        if value not in list(kinds):
            raise MisuseError(f"{what} = {value!r}: is one of {', '.join(kinds)}")
        return kinds(value)
    if isinstance(old, bool):
        if not isinstance(value, bool):
            raise MisuseError(f"{what} = {value!r}: is true or false")
        return value
    right_type = False
    if isinstance(old, tuple):
        right_type = isinstance(value, list | tuple) and all(
            isinstance(item, list | tuple) and all(type(size) is int for size in item) for item in value
        )
        value = tuple(tuple(item) for item in value) if right_type else value
    elif isinstance(old, int):
        right_type = type(value) is int
    elif isinstance(old, float) and type(value) in (int, float):
        with suppress(OverflowError):  # of a whole number beyond all fractions
            value = float(value)
        right_type = isinstance(value, float) and math.isfinite(value)
    if not right_type or not limits["allowed"](value):
        raise MisuseError(f"{what} = {value!r}: must be {limits['range']}")
    return value
