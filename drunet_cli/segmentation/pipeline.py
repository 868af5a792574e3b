"""One case end to end: read and check, predict, write."""

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drunet_cli.brats import ClassMap, Labels, Modality, describe_labels, label_values, volumes_ml, voxel_counts
from drunet_cli.errors import OutputError
from drunet_cli.io.atomic import check_writable, remove_stale, undisturbed, written
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning, WarningCode, voxel_litres
from drunet_cli.io.geometry import Geometry
from drunet_cli.io.images import read_images
from drunet_cli.io.inputs import InputFile, input_file, stamp
from drunet_cli.io.nifti import Header, encode_label_map
from drunet_cli.io.slices import SliceStack
from drunet_cli.network.checkpoint import Checkpoint
from drunet_cli.network.engine import Engine, WindowMode
from drunet_cli.segmentation import sidecar
from drunet_cli.segmentation.predict import Plan, predict


@dataclass(frozen=True)
class PreparedCase:
    """A case that has passed every check, as the network takes it.

    header, voxel_ml: of FLAIR, whose geometry the label map gets. inputs: the files by modality.
    """

    case: Case
    header: Header
    voxel_ml: float
    inputs: Mapping[Modality, InputFile]
    geometry: Geometry
    slices: SliceStack
    warnings: tuple[CaseWarning, ...]
    seconds: float


@dataclass(frozen=True)
class Segmentation:
    """A predicted case. class_map: class indices in FLAIR's own axes [I, J, K]. counts: voxels by class and region."""

    prepared: PreparedCase
    window: WindowMode
    class_map: ClassMap
    counts: Mapping[str, int]
    warnings: tuple[CaseWarning, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is written for a case, and how."""

    label_map: Path
    labels: Labels = Labels.BRATS2020
    sidecar: bool = True
    overwrite: bool = False

    @property
    def sidecar_path(self) -> Path:
        """Whether or not it is to be written."""
        return sidecar.sidecar_path(self.label_map)

    def remove_stale(self) -> None:
        """Remove what killed runs have left of these outputs."""
        for path in (self.label_map, self.sidecar_path):
            remove_stale(path)

    def check(self, inputs: Mapping[Modality, Path]) -> None:
        """Raise OutputError now for what would stop the writing later, an output that is an input among it."""
        check_writable(self.label_map, overwrite=self.overwrite)
        if any(self.label_map.exists() and self.label_map.samefile(path) for path in inputs.values()):
            raise OutputError(f"{self.label_map}: is one of the inputs; name another output")
        # Without a sidecar of its own the label map must not lie beside that of another.
        if self.sidecar or sidecar.is_sidecar(self.sidecar_path):
            try:
                check_writable(self.sidecar_path, overwrite=self.overwrite)
            except OutputError as error:
                raise OutputError(f"{error} (it would be the sidecar of {self.label_map.name})") from error

    def write(self, segmentation: Segmentation, document: Mapping[str, Any]) -> dict[str, Any]:
        """Write label map and sidecar; return the sidecar's object, completed by what is known of the file.

        Whoever publishes the label map publishes the sidecar beside it: a killed or beaten run may leave a label map without
        one, never one with another's. Raises OutputError.
        """
        label_map = label_values(segmentation.class_map, self.labels)
        compress = self.label_map.name.lower().endswith(".gz")
        content = encode_label_map(label_map, segmentation.prepared.header, compress=compress)
        completed = {
            **document,
            "output": str(self.label_map),
            "output_sha256": hashlib.sha256(content).hexdigest(),
            "labels": describe_labels(self.labels),
        }
        with undisturbed(), ExitStack() as published_last:
            if self.sidecar:
                stream = published_last.enter_context(written(self.sidecar_path, overwrite=self.overwrite))
                stream.write(sidecar.encode_sidecar(completed))
                stream.flush()  # a full disk is found here, before anything appears
            with written(self.label_map, overwrite=self.overwrite) as stream:
                stream.write(content)
                stream.flush()
                if self.overwrite and sidecar.is_sidecar(self.sidecar_path):
                    self.sidecar_path.unlink()
        return completed


def prepare(case: Case) -> PreparedCase:
    """Read a case, check it, and make the network's slices. No torch.

    Raises CaseError for whatever cannot be segmented.
    """
    begin = time.perf_counter()
    stamps = {modality: stamp(path) for modality, path in case.images.items()}
    images = read_images(case)
    inputs = {
        modality: input_file(volume.path, before=stamps[modality], sha256=volume.sha256)
        for modality, volume in images.volumes.items()
    }
    reference = images.reference
    return PreparedCase(
        case=case,
        header=reference.header,
        voxel_ml=voxel_litres(reference.affine) * 1000,
        inputs=inputs,
        geometry=images.geometry,
        slices=images.slices(),
        warnings=images.warnings,
        seconds=time.perf_counter() - begin,
    )


def segment(
    prepared: PreparedCase,
    engine: Engine,
    *,
    window: WindowMode,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Segmentation:
    """Predict one prepared case. Raises DeviceError when not even one slice fits the memory."""
    begin = time.perf_counter()
    plan = Plan(window=window)
    class_map = predict(prepared.slices, prepared.geometry, [engine], plan=plan, on_progress=on_progress).class_map
    counts = voxel_counts(class_map)
    warnings = prepared.warnings
    if counts["WT"] == 0:
        empty = CaseWarning(WarningCode.EMPTY_RESULT, "no tumour was found: every voxel is labelled background")
        warnings = (*warnings, empty)
    return Segmentation(prepared, window, class_map, counts, warnings, time.perf_counter() - begin)


def describe(segmentation: Segmentation, engine: Engine, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the sidecar holds of a predicted case, but for what is known only once it is written."""
    prepared = segmentation.prepared
    return {
        "schema": sidecar.SCHEMA,
        "case": prepared.case.name,
        "volumes_ml": volumes_ml(segmentation.counts, prepared.voxel_ml),
        "voxels": segmentation.counts,
        "warnings": sidecar.describe_warnings(segmentation.warnings),
        "weights": sidecar.describe_weights(checkpoint),
        "inputs": sidecar.describe_inputs(prepared.inputs),
        "geometry": sidecar.describe_geometry(prepared.geometry),
        "device": engine.device,
        "device_name": engine.device_name,
        "settings": {
            "engine": engine.name,
            "precision": engine.precision,
            "batch_size": engine.batch_size,
            "threads": engine.threads,
            "window": segmentation.window,
        },
        "versions": sidecar.describe_versions(engine),
        "seconds": {"read": round(prepared.seconds, 3), "network": round(segmentation.seconds, 3)},
    }
