"""One case end to end: read and check, predict, write."""

import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drunet_cli.brats import CHANNELS, ClassMap, Labels, Modality, label_values
from drunet_cli.errors import OutputError
from drunet_cli.io.atomic import check_writable, remove_stale, undisturbed, written
from drunet_cli.io.case import Case
from drunet_cli.io.checks import CaseWarning, WarningCode, brain_mask, case_warnings, check_volumes, voxel_litres
from drunet_cli.io.geometry import Geometry, fit
from drunet_cli.io.nifti import Volume, encode_label_map, load_volume
from drunet_cli.io.slices import SliceStack, network_slices
from drunet_cli.network.checkpoint import Checkpoint
from drunet_cli.network.engine import Engine
from drunet_cli.segmentation import sidecar
from drunet_cli.segmentation.predict import predict


@dataclass(frozen=True)
class PreparedCase:
    """A case that has passed every check, as the network takes it.

    reference: FLAIR, whose geometry the label map gets. inputs: path and SHA-256 by modality.
    """

    case: Case
    reference: Volume
    inputs: Mapping[str, Mapping[str, str]]
    geometry: Geometry
    slices: SliceStack
    warnings: tuple[CaseWarning, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is written for a case, and how."""

    label_map: Path
    labels: Labels = Labels.BRATS2020
    sidecar: bool = True
    overwrite: bool = False

    def check(self, inputs: Mapping[Modality, Path]) -> None:
        """Raise OutputError now for what would stop the writing later; remove what a killed run has left."""
        check_writable(self.label_map, overwrite=self.overwrite)
        if any(self.label_map.exists() and self.label_map.samefile(path) for path in inputs.values()):
            raise OutputError(f"{self.label_map}: is one of the inputs; name another output")
        if self.label_map.parent.is_dir():
            remove_stale(self.label_map)
        if self.sidecar:
            path = sidecar.sidecar_path(self.label_map)
            check_writable(path, overwrite=self.overwrite or self._is_orphan(path))

    def write(self, class_map: ClassMap, document: Mapping[str, Any], like: Volume) -> dict[str, Any]:
        """Write both files or neither; return the sidecar's object, completed by the label map's SHA-256. Raises OutputError.

        The label map, once it is there, says that everything is: its sidecar appears before it.
        """
        compress = self.label_map.name.lower().endswith(".gz")
        content = encode_label_map(label_values(class_map, self.labels), like, compress=compress)
        completed = {**document, "output_sha256": hashlib.sha256(content).hexdigest()}
        with undisturbed(), written(self.label_map, overwrite=self.overwrite) as stream:
            stream.write(content)
            stream.flush()  # a full disk is found here, before the sidecar appears
            if self.sidecar:
                path = sidecar.sidecar_path(self.label_map)
                sidecar.write_sidecar(path, completed, overwrite=self.overwrite or self._is_orphan(path))
        return completed

    def _is_orphan(self, path: Path) -> bool:
        """A sidecar without its label map: the run that wrote it was killed in between."""
        return not self.label_map.exists() and sidecar.is_sidecar(path)


def prepare(case: Case) -> PreparedCase:
    """Read a case, check it, and make the network's slices. No torch.

    Raises CaseError for whatever cannot be segmented.
    """
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(CHANNELS)) as threads:  # decompression runs outside the interpreter's lock
        volumes = dict(zip(CHANNELS, threads.map(lambda modality: load_volume(case.images[modality]), CHANNELS), strict=True))
    check_volumes(volumes)
    brain = brain_mask(volumes)
    flair = volumes[Modality.FLAIR]
    geometry = fit(brain, affine=flair.affine)
    warnings = case_warnings(volumes, brain, geometry)
    slices = network_slices(list(volumes.values()), geometry)
    inputs = sidecar.describe_inputs(volumes)
    return PreparedCase(case, flair, inputs, geometry, slices, tuple(warnings), time.perf_counter() - begin)


def segment(
    prepared: PreparedCase,
    engine: Engine,
    checkpoint: Checkpoint,
    target: Target,
    *,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Predict and write one prepared case; return the object that its sidecar holds.

    Raises DeviceError and OutputError. Nothing appears under the target's name unless all of it does.
    """
    begin = time.perf_counter()
    class_map = predict(prepared.slices, prepared.geometry, engine, on_progress=on_progress)
    network_s = time.perf_counter() - begin
    counts = sidecar.voxel_counts(class_map)
    warnings = list(prepared.warnings)
    if counts["WT"] == 0:
        warnings.append(CaseWarning(WarningCode.EMPTY_RESULT, "no tumour was found: every voxel is labelled background"))
    document = {
        "schema": sidecar.SCHEMA,
        "case": prepared.case.name,
        "output": str(target.label_map),
        "labels": sidecar.describe_labels(target.labels),
        "volumes_ml": sidecar.volumes_ml(counts, voxel_litres(prepared.reference.affine) * 1000),
        "voxels": counts,
        "warnings": sidecar.describe_warnings(warnings),
        "weights": sidecar.describe_weights(checkpoint),
        "inputs": prepared.inputs,
        "geometry": sidecar.describe_geometry(prepared.geometry),
        "device": engine.device,
        "device_name": engine.device_name,
        "settings": {
            "precision": engine.precision,
            "batch_size": engine.batch_size,
            "threads": engine.threads,
            "window": "full",
        },
        "versions": sidecar.versions(),
        "seconds": {"read": round(prepared.seconds, 3), "network": round(network_s, 3)},
    }
    return target.write(class_map, document, prepared.reference)
