"""Segmentation for Python programs: what `drunet segment` does, from files or arrays to files or arrays."""

import base64
import html
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, Labels, Modality, label_values, regions_in_words
from drunet_cli.errors import MisuseError
from drunet_cli.io.case import case_of
from drunet_cli.io.naming import is_nifti, stem
from drunet_cli.io.nifti import NiftiImage, label_image
from drunet_cli.network.engine import EngineName, Precision, WindowMode
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.outputs import OutputFiles, describe, draw_case
from drunet_cli.segmentation.predict import Ensemble
from drunet_cli.segmentation.settings import Settings
from drunet_cli.segmentation.summary import Status, columns_of, row_of
from drunet_cli.weights.cache import open_weights
from drunet_cli.weights.checkpoint import Checkpoint
from drunet_cli.weights.registry import DEFAULT, members_of

if TYPE_CHECKING:
    import pandas

Image: TypeAlias = str | os.PathLike[str] | npt.NDArray[Any]
_Plain = TypeVar("_Plain")
_LOG: Final = logging.getLogger("drunet_cli")


class Segmenter:
    """Segments cases with one or several sets of weights, on one device.

    Weights and engines are opened when the first case needs them, and kept. The settings are those of `drunet segment`:

    weights: a registered name, a file, the folder of a cross-validation, or several of them, whose probabilities are averaged.
    device: "auto", "cpu", "cuda", "cuda:1", "mps".
    precision: "auto", "float32", "bfloat16", "float16".
    engine: "auto", "torch", "onnxruntime", "openvino".
    window: "full", "auto", or None: as the weights were trained.
    fast: by windows, and in bfloat16 on a CPU that has it: for a look.
    deterministic: equal bytes from run to run, on a GPU too.
    batch_size: slices at once. threads: of the CPU, by default those that are granted.
    flips: average over the four in-plane flips.
    mc_samples: average over so many samples with dropout on, drawn from `seed`. dropout: their rate, by default the one that
    the weights record.
    probabilities, uncertainty: keep these maps too.
    within_brain: labels where none of the four images is above 0 are removed.
    min_volume_ml: smaller parts of the whole tumour are removed; or three volumes: also smaller parts of the core become
    oedema, and of enhancing tumour necrotic core. min_enhancing_ml: less enhancing tumour in all becomes necrotic core.
    strict: raise CaseError for a case with a warning which says that its label map is likely wrong.
    on_warning: called with what a user should know, by default written to the logger "drunet_cli".
    open_weights: opens a set of weights by name; by default a download is told to that logger too.

    For one thread at a time. Raises MisuseError for settings that exclude one another, ValueError for those that cannot be, and
    WeightsError for a folder that is no finished cross-validation.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = DEFAULT,
        *,
        device: str = "auto",
        precision: Precision | str = Precision.AUTO,
        engine: EngineName | str = EngineName.AUTO,
        window: WindowMode | str | None = None,
        fast: bool = False,
        deterministic: bool = False,
        batch_size: int | None = None,
        threads: int | None = None,
        flips: bool = False,
        mc_samples: int = 0,
        dropout: float | None = None,
        seed: int = 0,
        probabilities: bool = False,
        uncertainty: bool = False,
        within_brain: bool = False,
        min_volume_ml: float | Sequence[float] = 0.0,
        min_enhancing_ml: float = 0.0,
        recommended_postprocessing: bool = False,
        strict: bool = False,
        on_warning: Callable[[str], None] = _LOG.warning,
        open_weights: Callable[[str], Checkpoint] = open_weights,
    ) -> None:
        given = [weights] if isinstance(weights, str | os.PathLike) else weights
        settings = Settings(
            weights=tuple(member for each in given for member in members_of(os.fspath(each))),
            device=device,
            precision=Precision(precision),
            engine=EngineName(engine),
            window=None if window is None else WindowMode(window),
            fast=fast,
            deterministic=_without_numpy(deterministic),
            batch_size=_without_numpy(batch_size),
            threads=_without_numpy(threads),
            flips=flips,
            mc_samples=_without_numpy(mc_samples),
            dropout=_without_numpy(dropout),
            seed=_without_numpy(seed),
            probabilities=probabilities,
            uncertainty=uncertainty,
            within_brain=_without_numpy(within_brain),
            min_volume_ml=_one_or_several(min_volume_ml),
            min_enhancing_ml=_without_numpy(min_enhancing_ml),
            recommended_postprocessing=recommended_postprocessing,
            strict=strict,
        )
        self._ensemble = Ensemble(settings, on_warning=on_warning, open_weights=open_weights)

    def check(self) -> None:
        """Raise WeightsError for weights that cannot be had, before anything is read or downloaded."""
        self._ensemble.check_weights()

    def segment(
        self,
        *,
        t1: Image,
        t1ce: Image,
        t2: Image,
        flair: Image,
        affine: npt.ArrayLike | None = None,
        name: str | None = None,
        labels: Labels | str = Labels.BRATS2020,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "SegmentedCase":
        """Segment one case: four NIfTI files, or four arrays [I, J, K] of one shape, background 0.

        affine: for arrays, 4 x 4, voxel indices to RAS millimetres. name: of the case, by default what the files share, else
        "case". labels: "brats2020" (enhancing tumour is 4) or "brats2023" (3). on_progress: called with (slices done, slices in
        all), by default a bar where a notebook runs this, and nothing elsewhere.

        Raises CaseError for images that cannot be segmented, WeightsError for weights that cannot be had, DeviceError for a
        device that is absent or too small, MisuseError where files and arrays are mixed or an affine is missing or too much,
        TypeError for an image that is neither path nor array.
        """
        labels = Labels(labels)
        images = {Modality.FLAIR: flair, Modality.T1CE: t1ce, Modality.T1: t1, Modality.T2: t2}
        checked = _read_or_check(images, affine, name=name, strict=self._ensemble.settings.strict)
        self._ensemble.open()
        on_progress = on_progress or _bar_in_notebook(checked.case.name)
        predicted = pipeline.segment(checked, self._ensemble, on_progress=on_progress)
        document = describe(predicted, self._ensemble)
        kept = replace(predicted, checked=replace(checked, slices=checked.slices[:0].copy()))  # the largest part
        return SegmentedCase(kept, document, replace(self._ensemble.settings, labels=labels))


def _without_numpy(value: _Plain) -> _Plain:
    """The number or truth value that a scalar of numpy stands for, as sidecars can hold it."""
    return value.item() if isinstance(value, np.generic) else value


def _one_or_several(volumes_ml: float | Sequence[float]) -> Any:
    """A volume, or a tuple of volumes, which the settings check."""
    if isinstance(volumes_ml, tuple | list | np.ndarray):
        return tuple(_without_numpy(volume) for volume in volumes_ml)
    return _without_numpy(volumes_ml)


def _bar_in_notebook(name: str) -> Callable[[int, int], None]:
    """A callback that draws a bar below the cell of a notebook, and that does nothing in other programs."""
    ipython = sys.modules.get("IPython")  # of a notebook, which has imported it
    shell = ipython.get_ipython() if ipython else None
    if not hasattr(shell, "kernel"):
        return lambda *_: None
    display = importlib.import_module("IPython.display")
    shown = display.display(display.HTML(""), display_id=True)
    label = html.escape(name)

    def draw(n_done: int, n_all: int) -> None:
        bar = f'<progress value="{n_done}" max="{n_all}"></progress>'
        shown.update(display.HTML(f"{label}: {bar} {n_done} of {n_all} slices"))

    return draw


def _read_or_check(
    images: Mapping[Modality, Image], affine: npt.ArrayLike | None, *, name: str | None, strict: bool
) -> pipeline.CheckedCase:
    """Check four files, or four arrays with their affine."""
    for modality, image in images.items():
        if not isinstance(image, str | os.PathLike | np.ndarray):
            raise TypeError(
                f"{modality}: give a path or a numpy array, not {type(image).__name__} "
                "(of an image that nibabel loaded: image.get_fdata(), with affine=image.affine)"
            )
    arrays = {modality: image for modality, image in images.items() if isinstance(image, np.ndarray)}
    if not arrays:
        if affine is not None:
            raise MisuseError("affine: files have their own; leave it out")
        files = {modality: Path(image) for modality, image in images.items() if not isinstance(image, np.ndarray)}
        return pipeline.read_case(case_of(files, name=name), shown=CHANNELS, strict=strict)
    if len(arrays) < len(images):
        raise MisuseError("the four images are files or arrays, not some of each")
    if affine is None:
        raise MisuseError("arrays need an affine: 4 x 4, voxel indices to RAS millimetres")
    return pipeline.case_of_arrays(arrays, affine, name=name or "case", strict=strict)


@dataclass(frozen=True, eq=False, repr=False)  # arrays cannot be compared as a whole
class SegmentedCase:
    """A segmented case. A notebook shows its picture, volumes and warnings.

    document: the sidecar's object, a dictionary: volumes, weights, settings, versions and more.
    """

    _predicted: pipeline.PredictedCase
    document: dict[str, Any]
    _settings: Settings

    def __repr__(self) -> str:
        return f"<SegmentedCase {self.document['case']}: {regions_in_words(self.volumes_ml)}>"

    @property
    def labels(self) -> Labels:
        """The convention of the label map: enhancing tumour is 4 or 3."""
        return self._settings.labels

    @property
    def label_map(self) -> npt.NDArray[np.uint8]:
        """Label values [I, J, K] in FLAIR's own axes: 0 background, 1 NCR, 2 ED, and ET: 4, or 3 with "brats2023"."""
        return label_values(self._predicted.class_map, self.labels)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4, voxel indices to RAS millimetres."""
        views = self._predicted.checked.views
        assert views is not None, "every case is prepared for pictures"
        return views.affine

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volumes of NCR, ED, ET, WT and TC in mL."""
        return dict(self.document["volumes_ml"])

    @property
    def warnings(self) -> list[str]:
        """Warnings about the images or the result, such as thick slices, or that no tumour was found."""
        return [warning.message for warning in self._predicted.warnings]

    @property
    def probabilities(self) -> npt.NDArray[np.float16] | None:
        """[I, J, K, 4] by class, where they were asked for: background, NCR, ED, ET."""
        return self._predicted.prediction.probabilities

    @property
    def uncertainty(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """[I, J, K] of WT, TC and ET, where it was asked for: from 0, certain, to 100."""
        found = self._predicted.prediction.uncertainty
        return None if found is None else dict(found)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        sidecar: bool = True,
        preview: bool = False,
        viewer: bool = False,
    ) -> None:
        """Write the label map as NIfTI, .nii or .nii.gz; beside it the sidecar, the maps that were asked for, and pictures.

        preview: NAME_preview.png. viewer: NAME_view.html, a page that shows all slices in a browser.

        Raises OutputError where something is there and is not to be overwritten, or where it cannot be written, and MisuseError
        for another format.
        """
        path = Path(path)
        if not (is_nifti(path.name) and stem(path)):
            raise MisuseError(f"{path}: drunet writes NAME.nii.gz or NAME.nii")
        files = OutputFiles(path, replace(self._settings, overwrite=overwrite, sidecar=sidecar, preview=preview, viewer=viewer))
        checked = self._predicted.checked
        files.check(checked.case.files.values() if checked.inputs else ())
        files.write(self._predicted, self.document)

    def to_nibabel(self) -> NiftiImage:
        """The label map as an image of nibabel, uint8, in the geometry of FLAIR: what `save` writes. NIfTI-2 where FLAIR is."""
        return label_image(self.label_map, self._predicted.checked.header)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row with the columns of summary.csv, which any number of cases share. Raises MisuseError without pandas."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise MisuseError("to_dataframe needs pandas, which is not installed; run: pip install pandas") from error
        return pandas.DataFrame([columns_of(row_of(self.document, Status.DONE))])

    def _repr_png_(self) -> bytes:
        return draw_case(self._predicted, self.document)

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self._repr_png_()).decode()
        name = html.escape(str(self.document["case"]))
        return f'<img alt="{name}: images, labels and volumes" style="max-width: 100%" src="data:image/png;base64,{picture}">'
