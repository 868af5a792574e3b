"""Which cases are learnt from and which are held out: whole cases, never slices of one in both."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drunet_cli.errors import CaseError, MisuseError, listed
from drunet_cli.training.sampling import Stream, generator


@dataclass(frozen=True)
class Split:
    """Case names, sorted; none in both."""

    train: tuple[str, ...]
    validation: tuple[str, ...]

    def encoded(self) -> bytes:
        """As JSON that `read_split` reads."""
        return json.dumps({"train": self.train, "validation": self.validation}, indent=2).encode() + b"\n"


def split_by_fraction(names: Sequence[str], fraction: float, *, seed: int) -> Split:
    """Hold out this share of the cases, drawn by the seed: at least one unless the share is 0, and never all.

    Raises MisuseError when there are too few cases for that.
    """
    shuffled = _shuffled(names, seed)
    n_validation = max(1, round(fraction * len(shuffled))) if fraction > 0 else 0
    if not shuffled:
        raise MisuseError("there is no case to learn from")
    if n_validation >= len(shuffled):
        raise MisuseError(
            f"a held-out share of {fraction:g} leaves none of {len(names)} to learn from; give more cases, or --val-fraction 0"
        )
    return _split(shuffled, shuffled[:n_validation])


def split_by_fold(names: Sequence[str], n_folds: int, fold: int, *, seed: int) -> Split:
    """Hold out fold `fold`, counted from 1, of a partition into folds of equal size (to one case), drawn by the seed.

    Raises MisuseError when there are fewer cases than folds.
    """
    shuffled = _shuffled(names, seed)
    if n_folds > len(shuffled):
        raise MisuseError(f"--folds {n_folds}: there are fewer cases than that ({len(shuffled)})")
    return _split(shuffled, shuffled[fold - 1 :: n_folds])


def read_split(path: Path, names: Sequence[str]) -> Split:
    """The split of a JSON file {"train": [names], "validation": [names]}; cases that it does not name are left out.

    Raises CaseError for a file that is none, names a case twice, or names one that is not there.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        train, validation = document["train"], document["validation"]
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CaseError(f'{path}: is not a split: a JSON object {{"train": [names], "validation": [names]}}') from error
    if not all(isinstance(part, list) and all(isinstance(name, str) for name in part) for part in (train, validation)):
        raise CaseError(f"{path}: train and validation are lists of case names")
    named = train + validation
    if doubled := sorted({name for name in named if named.count(name) > 1}):
        raise CaseError(f"{path}: names {listed(doubled)} more than once; a case is learnt from or held out")
    if missing := sorted(set(named) - set(names)):
        raise CaseError(f"{path}: names {listed(missing)}, not among the {len(names)} cases that were found")
    if not train:
        raise CaseError(f"{path}: names no case to learn from")
    return Split(tuple(sorted(train)), tuple(sorted(validation)))


def _shuffled(names: Sequence[str], seed: int) -> list[str]:
    ordered = sorted(names)
    return [ordered[index] for index in generator(seed, Stream.SPLIT).permutation(len(ordered))]


def _split(names: Sequence[str], validation: Sequence[str]) -> Split:
    return Split(tuple(sorted(set(names) - set(validation))), tuple(sorted(validation)))
