"""The files of a segmented case: the label map, its sidecar, and the maps and the pictures beside them.

The label map is published last: where it is, everything beside it is. A sidecar without its label map is what a killed run has
left, counts as nothing, and is replaced together with the files that it names.
"""

import hashlib
import json
import os
import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

import drunet_cli
from drunet_cli.brats import REGIONS, UNCERTAINTY_MAPS, ClassMap, Labels, Modality, describe_labels, label_values, volumes_ml
from drunet_cli.errors import OutputError
from drunet_cli.io.atomic import check_not_an_input, check_writable, publish_together, remove_stale
from drunet_cli.io.geometry import Geometry
from drunet_cli.io.inputs import read_document, sha256_of
from drunet_cli.io.naming import NIFTI_SUFFIXES, beside, dataset_of, stem
from drunet_cli.io.nifti import encode_map
from drunet_cli.network.engine import Engine
from drunet_cli.prepare.record import labels_in, read_picture
from drunet_cli.segmentation.derivatives import LABEL_ABBREVIATIONS, describe_dataset, facts_of, lookup_table
from drunet_cli.segmentation.pipeline import PredictedCase
from drunet_cli.segmentation.predict import Ensemble
from drunet_cli.segmentation.settings import Settings
from drunet_cli.segmentation.summary import described_weights, side_in_words, time_now
from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.registry import caveat_of

SCHEMA: Final = "drunet.segmentation/1"
PREVIEW_ENDING: Final = "_preview.png"
PREPARED_ENDING: Final = "_prepared.png"
VIEW_ENDING: Final = "_view.html"


class OutputState(StrEnum):
    """The state of a case's outputs before a run."""

    NEW = "new"
    COMPLETE = "segmented"
    UNFINISHED = "unfinished"  # a sidecar without its label map: a run was killed
    FOREIGN = "foreign file"  # not described by drunet: never replaced unasked


@dataclass(frozen=True)
class OutputFiles:
    """The files of one case that the settings ask for. The others are named by the label map: seg.nii.gz has seg.json.

    In a BIDS data set they have the names of `io.naming`, and the sidecars and tables of BIDS lie beside the maps.
    """

    label_map: Path
    settings: Settings

    @property
    def sidecar(self) -> Path:
        """The path of the sidecar, whether or not it is to be written."""
        return self._beside(".json")

    @property
    def extras(self) -> list[Path]:
        """The pictures and the maps that are to be written beside the label map."""
        return [
            *([self._beside(PREVIEW_ENDING)] if self.settings.preview else []),
            *([self._beside(PREPARED_ENDING)] if self.settings.shows_preparation else []),
            *([self._beside(VIEW_ENDING)] if self.settings.viewer else []),
            *(self._map(f"_in_{modality}") for modality in self.settings.in_space),
            *(map(self._object, self.settings.carried_to) if self.settings.dicom_seg else []),
            *([self._map("_probabilities")] if self.settings.probabilities else []),
            *(map(self._map, (*UNCERTAINTY_MAPS.values(), "_entropy")) if self.settings.uncertainty else []),
            *(self._of_bids if self.settings.bids else []),
        ]

    @property
    def paths(self) -> list[Path]:
        """Every file that may be written."""
        return [self.label_map, self.sidecar, *self.extras]

    @property
    def _of_bids(self) -> list[Path]:
        """The tables of labels and the sidecars that BIDS wants beside the maps."""
        return [
            self._beside(".tsv"),
            *(self._beside(f"_in_{modality}{suffix}") for modality in self.settings.in_space for suffix in (".tsv", ".json")),
            *([self._beside("_probabilities.json")] if self.settings.probabilities else []),
        ]

    def _object(self, modality: Modality) -> Path:
        return self._beside(f"_in_{modality}.dcm")

    def _map(self, ending: str) -> Path:
        """A NIfTI file of the label map's kind: seg.nii.gz has seg_entropy.nii.gz."""
        return self._beside(f"{ending}{self.label_map.name[len(stem(self.label_map)) :]}")

    def _beside(self, ending: str) -> Path:
        return beside(self.label_map, ending)

    # The files that are there

    def state(self) -> OutputState:
        """The state of these files."""
        if os.path.lexists(self.label_map):
            return OutputState.COMPLETE if read_sidecar(self.sidecar) is not None else OutputState.FOREIGN
        if self._leftovers():
            return OutputState.UNFINISHED
        needs_sidecar = self.settings.sidecar or read_sidecar(self.sidecar) is not None  # of a label map of the other suffix
        return OutputState.FOREIGN if needs_sidecar and os.path.lexists(self.sidecar) else OutputState.NEW

    def extras_there(self) -> list[bool]:
        """For each of the extras, whether a file is there that is no leftover of a killed run."""
        leftovers = self._leftovers()
        return [os.path.lexists(path) and path not in leftovers for path in self.extras]

    def has_extras(self, document: Mapping[str, Any]) -> bool:
        """Whether all extras are there as the sidecar names them. document: the sidecar's object.

        Raises OutputError for an extra that the sidecar does not name: it belongs to another label map, or to somebody.
        """
        named = _files_named(self.label_map, document)
        there = [path for path in self.extras if os.path.lexists(path)]
        for path in there:
            if path not in named or sha256_of(path, error=OutputError) != named[path]:
                found = f"exists already, and is not of {self.label_map.name} as it is"
                raise OutputError(f"{path}: {found}; move it away to keep it, or give --overwrite to replace it")
        return len(there) == len(self.extras)

    def check(self, inputs: Collection[Path]) -> None:
        """Raise OutputError now for faults that would stop the writing later, such as an output that is a file of the case."""
        leftovers = self._leftovers()
        for path in (self.label_map, *self.extras):
            check_writable(path, overwrite=self.settings.overwrite or path in leftovers)
            check_not_an_input(path, inputs)
        # Without a sidecar of its own the label map must not lie beside that of another.
        if self.settings.sidecar or read_sidecar(self.sidecar) is not None:
            try:
                check_writable(self.sidecar, overwrite=self.settings.overwrite or self.sidecar in leftovers)
            except OutputError as error:
                raise OutputError(f"{error} (it would be the sidecar of {self.label_map.name})") from error

    def remove_stale(self) -> None:
        """Remove the temporary files that killed runs have left of these outputs."""
        for path in self.paths:
            remove_stale(path)

    def remove_empty_folders(self) -> None:
        """Remove the folders of this case in a data set as far as they are empty: those made for a case that then failed."""
        dataset = dataset_of(self.label_map)
        with suppress(OSError):  # not empty, or of another run
            for folder in self.label_map.parents:
                if folder == dataset:
                    break
                folder.rmdir()

    def _leftovers(self) -> set[Path]:
        """The sidecar that a killed run has left without its label map, and the files that it names, unless changed since.

        X.nii.gz and X.nii share one sidecar: either of them keeps it.
        """
        if any(os.path.lexists(self._beside(suffix)) for suffix in NIFTI_SUFFIXES):
            return set()
        document = read_sidecar(self.sidecar)
        if document is None:
            return set()
        named = {path: sha256 for path, sha256 in _files_named(self.label_map, document).items() if path.is_file()}
        return {self.sidecar, *(path for path, sha256 in named.items() if sha256_of(path, error=OutputError) == sha256)}

    # Writing

    def write(self, predicted: PredictedCase, document: Mapping[str, Any], *, adding: bool = False) -> dict[str, Any]:
        """Write all files, the label map last; return the sidecar's object, completed by the facts of the files.

        document: see `describe`. adding: the label map is there, and only extras are missing; where it comes out the same, the
        other files beside it stay. Raises OutputError, and CaseError for a DICOM series whose headers cannot be used.
        """
        label_map = label_values(predicted.class_map, self.settings.labels)
        content = encode_map(label_map, predicted.checked.header, compress=self._compress)
        sha256 = hashlib.sha256(content).hexdigest()
        uris = self._describe_dataset(predicted)
        extras = dict(self._encoded_extras(predicted, document, uris))
        overwrite = self.settings.overwrite or adding
        leftovers = self._leftovers()
        before = (read_sidecar(self.sidecar) or {}) if overwrite or leftovers else {}
        named = _files_named(self.label_map, before)
        kept = {}
        if adding and before.get("output_sha256") == sha256:
            kept = {path.name: digest for path, digest in named.items() if path not in extras}
        completed = {
            **document,
            **self._facts_for_bids(predicted, uris, words="Label map of a brain tumour"),
            "output": str(self.label_map),
            "output_sha256": sha256,
            "labels": describe_labels(self.settings.labels),
            "files": kept | {path.name: hashlib.sha256(encoded).hexdigest() for path, encoded in extras.items()},
        }
        outdated = {path for path in named if path.name not in kept and (overwrite or path in leftovers)}
        contents = {self.label_map: content, **extras}
        if self.settings.sidecar:
            contents[self.sidecar] = encode_sidecar(completed)
        with publish_together(contents, replaceable=contents if overwrite else leftovers):
            if not overwrite and os.path.lexists(self.label_map):
                raise OutputError(f"{self.label_map}: has appeared while drunet was working; nothing was replaced")
            # A process that is killed from here on leaves a sidecar without a label map, which counts as nothing; or it leaves
            # the label map that was to be replaced, whose SHA-256 the sidecar does not have, unless it was the same.
            for path in outdated.union(extras if overwrite else ()):
                path.unlink(missing_ok=True)
            if before and not self.settings.sidecar:
                self.sidecar.unlink(missing_ok=True)
        return completed

    @property
    def _compress(self) -> bool:
        return self.label_map.name.lower().endswith(".gz")

    def _encoded_extras(
        self, predicted: PredictedCase, document: Mapping[str, Any], uris: Mapping[Path, str]
    ) -> Iterator[tuple[Path, bytes]]:
        prediction, header = predicted.prediction, predicted.checked.header
        if self.settings.preview:
            yield self._beside(PREVIEW_ENDING), draw_case(predicted, document)
        if self.settings.shows_preparation:
            yield self._beside(PREPARED_ENDING), read_picture(predicted.checked.case)
        if self.settings.viewer:
            yield self._beside(VIEW_ENDING), _page(predicted, document, self.settings.labels)
        for modality in self.settings.carried_to:
            yield from self._encoded_in_native_space(predicted, document, modality)
        if prediction.probabilities is not None:
            yield self._map("_probabilities"), encode_map(prediction.probabilities, header, compress=self._compress)
        if prediction.uncertainty is not None and prediction.entropy is not None:
            for region, ending in UNCERTAINTY_MAPS.items():
                yield self._map(ending), encode_map(prediction.uncertainty[region], header, compress=self._compress)
            yield self._map("_entropy"), encode_map(prediction.entropy, header, compress=self._compress)
        if self.settings.bids:
            yield from self._encoded_for_bids(predicted, uris)

    def _encoded_for_bids(self, predicted: PredictedCase, uris: Mapping[Path, str]) -> Iterator[tuple[Path, bytes]]:
        table = lookup_table(self.settings.labels)
        yield self._beside(".tsv"), table
        for modality in self.settings.in_space:
            words = f"Label map of a brain tumour, on the grid of {modality.display}"
            yield self._beside(f"_in_{modality}.tsv"), table
            facts = self._facts_for_bids(predicted, uris, words=words, scan=modality)
            yield self._beside(f"_in_{modality}.json"), encode_sidecar(facts)
        if self.settings.probabilities:
            words = "Probabilities of background and of the parts of a brain tumour"
            facts = self._facts_for_bids(predicted, uris, words=words)
            yield self._beside("_probabilities.json"), encode_sidecar({**facts, "LabelMap": list(LABEL_ABBREVIATIONS)})

    def _describe_dataset(self, predicted: PredictedCase) -> Mapping[Path, str]:
        """Name the images of the case in the BIDS data set's description; return their URIs. Raises OutputError."""
        if not self.settings.bids:
            return {}
        images = [*_sources(predicted).values(), predicted.checked.case.images[Modality.FLAIR]]
        return describe_dataset(dataset_of(self.label_map), images)

    def _facts_for_bids(
        self, predicted: PredictedCase, uris: Mapping[Path, str], *, words: str, scan: Modality | None = None
    ) -> dict[str, Any]:
        """The fields of BIDS that describe a map; none without --bids. scan: on whose grid the map lies, else FLAIR."""
        if not self.settings.bids:
            return {}
        sources = _sources(predicted)
        reference = predicted.checked.case.images[Modality.FLAIR] if scan is None else sources[scan]
        return facts_of(uris, sources.values(), reference, words=words)

    def _encoded_in_native_space(
        self, predicted: PredictedCase, document: Mapping[str, Any], modality: Modality
    ) -> Iterator[tuple[Path, bytes]]:
        """The labels on the grid of a raw scan, with the scan's geometry: as NIfTI, and as DICOM."""
        checked = predicted.checked
        assert checked.origin is not None, "a case without an origin was refused"
        space = checked.origin.spaces[modality]
        classes = labels_in(predicted.class_map, np.asarray(checked.header.get_best_affine()), space)
        if modality in self.settings.in_space:
            label_map = label_values(classes, self.settings.labels)
            yield self._map(f"_in_{modality}"), encode_map(label_map, space.header, compress=self._compress)
        if self.settings.dicom_seg:
            from drunet_cli.prepare.dicom_seg import encode_segmentation

            weights = [(str(each["name"]), str(each["sha256"])) for each in described_weights(document)]
            yield self._object(modality), encode_segmentation(classes, checked.series[modality], weights=weights)


def _sources(predicted: PredictedCase) -> dict[Modality, Path]:
    """The images that a label map is made of: the raw scans of a prepared case."""
    case, origin = predicted.checked.case, predicted.checked.origin
    return dict(case.images) if origin is None else {each: Path(space.scan) for each, space in origin.spaces.items()}


def draw_case(predicted: PredictedCase, document: Mapping[str, Any]) -> bytes:
    """The picture of a case as a PNG file. document: see `describe`."""
    from drunet_cli.segmentation.preview import draw_preview  # Pillow's fonts: not for runs without a picture

    views = predicted.checked.views
    assert views is not None, "a case is prepared for the pictures that are asked for"
    return draw_preview(
        views.images[Modality.FLAIR],
        views.images[Modality.T1CE],
        predicted.class_map,
        affine=views.affine,
        name=predicted.checked.case.name,
        volumes_ml=document["volumes_ml"],
        warnings=[warning.message for warning in predicted.warnings],
        caveat=caveat_of([each["sha256"] for each in described_weights(document)]),
    )


def _page(predicted: PredictedCase, document: Mapping[str, Any], labels: Labels) -> bytes:
    from drunet_cli.segmentation.viewer import Labelled, encode_viewer

    views = predicted.checked.views
    assert views is not None, "a case is prepared for the pictures that are asked for"
    weights = described_weights(document)
    return encode_viewer(
        views.images,
        Labelled(predicted.class_map, labels),
        affine=views.affine,
        name=predicted.checked.case.name,
        weights=[str(each["name"]) for each in weights],
        warnings=predicted.warnings,
        side=side_in_words(document),
        caveat=caveat_of([each["sha256"] for each in weights]),
    )


# The sidecar: one JSON object a case, the same that --json prints. Keys are stable within a schema version; more may be added.


def describe(predicted: PredictedCase, ensemble: Ensemble) -> dict[str, Any]:
    """The sidecar's object of a predicted case, without the fields that only writing the files can fill."""
    checked = predicted.checked
    origin = checked.origin
    weights = [_weights_entry(checkpoint) for checkpoint in ensemble.checkpoints]
    engine = ensemble.engines[0]
    inputs = {modality: asdict(file) for modality, file in checked.inputs.items()}
    if origin is not None and origin.record is None:  # the prepared files will be gone, and their folder with them
        inputs = {modality: {**file, "path": Path(file["path"]).name} for modality, file in inputs.items()}
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "case": checked.case.name,
        "volumes_ml": volumes_ml(predicted.counts, checked.voxel_ml),
        "voxels": predicted.counts,
        "side": None if predicted.sides is None else predicted.sides.word,
        "side_percent": None if predicted.sides is None else asdict(predicted.sides),
        "warnings": [{"code": warning.code, "message": warning.message} for warning in predicted.warnings],
        "weights": weights[0] if len(weights) == 1 else weights,
        "inputs": inputs,
        "geometry": _geometry_entry(checked.geometry),
        "device": engine.device,
        "device_name": engine.device_name,
        "settings": {
            "engine": engine.name,
            "precision": engine.precision,
            "batch_size": engine.batch_size,
            "threads": engine.threads,
            **ensemble.recorded,
        },
        "versions": _versions_entry(engine),
        "seconds": {"read": round(checked.seconds, 3), "network": round(predicted.seconds, 3)},
        "time": time_now(),
    }
    if origin is not None:
        record = None if origin.record is None else str(origin.record)
        document["prepared_from"] = {"record": record, **origin.summary, "volumes_of": "the prepared grid"}
    if predicted.prediction.uncertainty is not None:
        document["mean_uncertainty"] = _mean_uncertainty(predicted.prediction.uncertainty, predicted.class_map)
    return document if predicted.cleaned is None else {**document, "postprocessing": predicted.cleaned}


def _mean_uncertainty(maps: Mapping[str, npt.NDArray[np.uint8]], class_map: ClassMap) -> dict[str, float | None]:
    """The mean of each region's uncertainty, in percent, over the voxels that are labelled as the region; None without any.

    Over the whole image it would tell how much of the image is tumour.
    """
    inside = {region: np.isin(class_map, classes) for region, classes in REGIONS.items()}
    return {region: round(float(maps[region][where].mean()), 2) if where.any() else None for region, where in inside.items()}


def _weights_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """sha256 is that of the file that was opened, source_sha256 that of the authors' file it was made from."""
    metadata = checkpoint.metadata
    return {
        "name": metadata.name,
        "sha256": checkpoint.sha256,
        "source_sha256": metadata.source_sha256 or None,
        "origin": metadata.origin or None,
        "base_width": metadata.base_width,
        "bn_epsilon": metadata.bn_epsilon,
    }


def _geometry_entry(geometry: Geometry) -> dict[str, Any]:
    """The orientation and spacing of the case, and how it was fitted to the frame."""
    return {
        "shape": list(geometry.shape),
        "axes": geometry.axcodes,
        "frame": geometry.fit,
        "frame_start_mm": [geometry.x.start_mm, geometry.y.start_mm],
        "in_plane_spacing_mm": [round(geometry.x.spacing_mm, 6), round(geometry.y.spacing_mm, 6)],
        "slice_spacing_mm": round(geometry.slice_spacing_mm, 6),
    }


def _versions_entry(engine: Engine) -> dict[str, str]:
    """The versions of all software that may change a voxel."""
    versions = {"drunet": drunet_cli.__version__, "python": platform.python_version()}
    return versions | dict(engine.versions) | {"numpy": np.__version__, "nibabel": nib.__version__}


def encode_sidecar(document: Mapping[str, Any]) -> bytes:
    """The object as JSON, indented for people."""
    return json.dumps(document, indent=2).encode() + b"\n"


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """The object of a file that drunet wrote beside a label map; None for any other file, and where there is none."""
    return read_document(path, schema="drunet.segmentation/")


def _files_named(label_map: Path, document: Mapping[str, Any]) -> dict[Path, str]:
    """The files beside a label map that its sidecar's object names, each with its SHA-256."""
    files = document.get("files")
    named = files.items() if isinstance(files, dict) else []
    return {label_map.with_name(name): str(sha256) for name, sha256 in named if name and Path(name).name == name}
