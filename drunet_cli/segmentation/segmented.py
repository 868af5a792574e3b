"""What comes out of a case, for programs: arrays, and the files that `drunet segment` would write."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import Labels, label_values
from drunet_cli.errors import MisuseError
from drunet_cli.segmentation import pipeline
from drunet_cli.segmentation.outputs import Extra, Target


@dataclass(frozen=True)
class SegmentedCase:
    """A segmented case.

    document: what the sidecar holds, as a dictionary: volumes, weights, settings, versions and more.
    """

    _segmentation: pipeline.Segmentation
    document: dict[str, Any]
    labels: Labels

    @property
    def label_map(self) -> npt.NDArray[np.uint8]:
        """Label values [I, J, K] in FLAIR's own axes: 0 background, 1 NCR, 2 ED, and ET: 4, or 3 with "brats2023"."""
        return label_values(self._segmentation.class_map, self.labels)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4, voxel indices to RAS millimetres."""
        views = self._segmentation.prepared.views
        assert views is not None, "every case is prepared for a picture"
        return views.affine

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Of NCR, ED, ET, WT and TC, in mL."""
        return dict(self.document["volumes_ml"])

    @property
    def warnings(self) -> list[str]:
        """What is remarkable of the images or the result, such as slices that are thick, or that no tumour was found."""
        return [warning.message for warning in self._segmentation.warnings]

    @property
    def probabilities(self) -> npt.NDArray[np.float16] | None:
        """[I, J, K, 4] by class, where they were asked for: background, NCR, ED, ET."""
        return self._segmentation.prediction.probabilities

    @property
    def uncertainty(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """[I, J, K] of WT, TC and ET, where it was asked for: from 0, certain, to 100."""
        found = self._segmentation.prediction.uncertainty
        return None if found is None else dict(found)

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, sidecar: bool = True, preview: bool = False
    ) -> None:
        """Write the label map as NIfTI, .nii or .nii.gz; beside it the sidecar, the maps that were asked for, and a picture.

        Raises OutputError where something is there and is not to be overwritten, or where it cannot be written, and MisuseError
        for another format.
        """
        path = Path(path)
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            raise MisuseError(f"{path}: drunet writes NAME.nii.gz or NAME.nii")
        prediction = self._segmentation.prediction
        wanted = {
            Extra.PREVIEW: preview,
            Extra.PROBABILITIES: prediction.probabilities is not None,
            Extra.UNCERTAINTY: prediction.uncertainty is not None,
        }
        target = Target(
            label_map=path,
            labels=self.labels,
            sidecar=sidecar,
            extras=frozenset(extra for extra, is_wanted in wanted.items() if is_wanted),
            overwrite=overwrite,
        )
        prepared = self._segmentation.prepared
        target.check(prepared.case.images if prepared.inputs else {})
        target.write(self._segmentation, self.document)
