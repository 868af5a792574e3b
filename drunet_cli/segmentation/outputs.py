"""What is written for a case: the label map, its sidecar, and the files beside them that are asked for."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from drunet_cli.brats import Labels, Modality, describe_labels, label_values
from drunet_cli.errors import OutputError
from drunet_cli.evaluation.pairs import UNCERTAINTY_MAPS
from drunet_cli.io.atomic import check_writable, remove_stale, write_atomically
from drunet_cli.io.naming import stem
from drunet_cli.io.nifti import encode_label_map, encode_map
from drunet_cli.io.volumes import file_sha256
from drunet_cli.segmentation import sidecar
from drunet_cli.segmentation.pipeline import Segmentation
from drunet_cli.signals import hold_signals


class Extra(StrEnum):
    """A file, or several, beside the label map."""

    PREVIEW = "preview"
    PROBABILITIES = "probabilities"
    UNCERTAINTY = "uncertainty"


_ENTROPY: Final = "_entropy"


def chosen(extras: Mapping[Extra, bool]) -> frozenset[Extra]:
    """Those that are wanted. Raises MisuseError where one of them cannot be made here."""
    if extras[Extra.PREVIEW]:
        from drunet_cli.segmentation.preview import check_drawable

        check_drawable()
    return frozenset(extra for extra, wanted in extras.items() if wanted)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is written for each case, and how."""

    labels: Labels = Labels.BRATS2020
    sidecar: bool = True
    extras: frozenset[Extra] = frozenset()
    overwrite: bool = False

    def target(self, label_map: Path) -> "Target":
        """The same of one case."""
        return Target(
            label_map=label_map, labels=self.labels, sidecar=self.sidecar, extras=self.extras, overwrite=self.overwrite
        )


@dataclass(frozen=True, kw_only=True)
class Target(Wanted):
    """What is written for a case, and how.

    completing: the label map is there as it is to be made, and only files beside it are missing.
    """

    label_map: Path
    completing: bool = False

    @property
    def sidecar_path(self) -> Path:
        """Whether or not it is to be written."""
        return sidecar.sidecar_path(self.label_map)

    @property
    def extra_paths(self) -> list[Path]:
        """The files beside the label map that are asked for."""
        return [path for extra in Extra if extra in self.extras for path in _paths(extra, self.label_map)]

    def has_extras(self, document: Mapping[str, Any]) -> bool:
        """Whether all files that are asked for are there beside the label map. document: the object of its sidecar.

        Raises OutputError for one that is not as the sidecar has it: it belongs to another label map, or is somebody's.
        """
        told = sidecar.files_beside(self.label_map, document)
        there = [path for path in self.extra_paths if os.path.lexists(path)]
        for path in there:
            try:
                ours = path in told and file_sha256(path) == told[path]
            except OSError as error:
                raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
            if not ours:
                raise OutputError(f"{path}: exists already, and is not of {self.label_map.name} as it is; give --overwrite")
        return len(there) == len(self.extra_paths)

    def remove_stale(self) -> None:
        """Remove what killed runs have left of these outputs."""
        for path in (self.label_map, self.sidecar_path, *self.extra_paths):
            remove_stale(path)

    def check(self, inputs: Mapping[Modality, Path]) -> None:
        """Raise OutputError now for what would stop the writing later, an output that is an input among it."""
        for path in (self.label_map, *self.extra_paths):
            check_writable(path, overwrite=self.overwrite)
            if path.exists() and any(path.samefile(image) for image in inputs.values()):
                raise OutputError(f"{path}: is one of the inputs; name another output")
        # Without a sidecar of its own the label map must not lie beside that of another.
        if self.sidecar or sidecar.is_sidecar(self.sidecar_path):
            try:
                check_writable(self.sidecar_path, overwrite=self.overwrite)
            except OutputError as error:
                raise OutputError(f"{error} (it would be the sidecar of {self.label_map.name})") from error

    def write(self, segmentation: Segmentation, document: Mapping[str, Any]) -> dict[str, Any]:
        """Write everything; return the sidecar's object, completed by what is known of the files.

        Whoever publishes the label map publishes the sidecar beside it: a killed or beaten run may leave a label map without
        one, never one with another's. What the sidecar names beside the label map follows them. Raises OutputError.
        """
        label_map = label_values(segmentation.class_map, self.labels)
        content = encode_label_map(label_map, segmentation.prepared.header, compress=self._compress)
        sha256 = hashlib.sha256(content).hexdigest()
        extras = dict(self._encoded(segmentation, document))
        before = sidecar.read_sidecar(self.sidecar_path) or {} if self.overwrite else {}
        old = sidecar.files_beside(self.label_map, before)
        if self.completing and before.get("output_sha256") == sha256:
            kept = {path.name: digest for path, digest in old.items() if path not in extras}
            old = {}
        else:  # pictures and maps of another label map are not to lie beside this one
            kept = {}
        completed = {
            **document,
            "output": str(self.label_map),
            "output_sha256": sha256,
            "labels": describe_labels(self.labels),
            "files": kept | {path.name: hashlib.sha256(encoded).hexdigest() for path, encoded in extras.items()},
        }
        with hold_signals():
            try:
                self._publish(content, completed, outdated=list(old))
            except OutputError:  # another run may have taken this one for killed, and published its sidecar for it
                if sidecar.files_beside(self.label_map, sidecar.read_sidecar(self.sidecar_path) or {}) == {
                    self.label_map.with_name(name): digest for name, digest in completed["files"].items()
                }:
                    self._write_extras(extras)
                raise
            self._write_extras(extras)
        return completed

    def _write_extras(self, extras: Mapping[Path, bytes]) -> None:
        for path, encoded in extras.items():
            with write_atomically(path, overwrite=self.overwrite) as stream:
                stream.write(encoded)

    @property
    def _compress(self) -> bool:
        return self.label_map.name.lower().endswith(".gz")

    def _publish(self, content: bytes, completed: Mapping[str, Any], *, outdated: Sequence[Path]) -> None:
        with ExitStack() as published_last:
            if self.sidecar:
                stream = published_last.enter_context(write_atomically(self.sidecar_path, overwrite=self.overwrite))
                stream.write(sidecar.encode_sidecar(completed))
                stream.flush()  # a full disk is found here, before anything appears
            with write_atomically(self.label_map, overwrite=self.overwrite) as stream:
                stream.write(content)
                stream.flush()
                for path in outdated:
                    path.unlink(missing_ok=True)
                if self.overwrite and sidecar.is_sidecar(self.sidecar_path):
                    self.sidecar_path.unlink()

    def _encoded(self, segmentation: Segmentation, document: Mapping[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """Every file beside the label map with its content."""
        prediction, header = segmentation.prediction, segmentation.prepared.header
        if Extra.PREVIEW in self.extras:
            yield _preview_path(self.label_map), _preview(segmentation, document)
        if prediction.probabilities is not None:
            values = encode_map(prediction.probabilities, header, compress=self._compress)
            yield _beside(self.label_map, "_probabilities"), values
        if prediction.uncertainty is not None and prediction.entropy is not None:
            for region, suffix in UNCERTAINTY_MAPS.items():
                values = encode_map(prediction.uncertainty[region], header, compress=self._compress)
                yield _beside(self.label_map, suffix), values
            yield _beside(self.label_map, _ENTROPY), encode_map(prediction.entropy, header, compress=self._compress)


def _paths(extra: Extra, label_map: Path) -> list[Path]:
    if extra is Extra.PREVIEW:
        return [_preview_path(label_map)]
    if extra is Extra.PROBABILITIES:
        return [_beside(label_map, "_probabilities")]
    return [_beside(label_map, suffix) for suffix in (*UNCERTAINTY_MAPS.values(), _ENTROPY)]


def _beside(label_map: Path, suffix: str) -> Path:
    """A NIfTI file of the label map's kind: seg.nii.gz has seg_entropy.nii.gz."""
    base = stem(label_map)
    return label_map.with_name(f"{base}{suffix}{label_map.name[len(base) :]}")


def _preview_path(label_map: Path) -> Path:
    return label_map.with_name(f"{stem(label_map)}_preview.png")


def _preview(segmentation: Segmentation, document: Mapping[str, Any]) -> bytes:
    from drunet_cli.segmentation.preview import draw_preview  # Pillow's fonts: not for runs without a picture

    views = segmentation.prepared.views
    assert views is not None, "a case is prepared for the picture that is asked for"
    return draw_preview(
        views.flair,
        views.t1ce,
        segmentation.class_map,
        affine=views.affine,
        name=segmentation.prepared.case.name,
        volumes_ml=document["volumes_ml"],
        warnings=[warning.message for warning in segmentation.warnings],
    )
