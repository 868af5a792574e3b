"""The published width on a case of the published size: minutes, so marked slow."""

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from drunet_cli.brats import Modality
from tests.keras_file import write_keras_h5
from tests.support import GOLDEN_IMAGES, image_options, open_image

_LIMIT_GB = 2.5
# A real brain has some 135 slices; slices that are computed after one another take no more memory.
_N_SLICES, _N_BRAIN = 155, 5


def _brats_sized(folder: Path) -> dict[Modality, Path]:
    """The golden case's five slices, between blank ones, on the whole BraTS grid."""
    images = {}
    for modality, path in GOLDEN_IMAGES.items():
        image = open_image(path)
        voxels = np.zeros((240, 240, _N_SLICES), dtype=np.int16)
        voxels[..., 10 : 10 + _N_BRAIN] = np.asarray(image.dataobj)
        images[modality] = folder / f"whole_{modality}.nii.gz"
        nib.Nifti1Image(voxels, image.affine).to_filename(images[modality])
    return images


def _run(*arguments: str | Path) -> tuple[int, float]:
    """Exit code and peak memory in GB of one drunet process."""
    command = [sys.executable, "-m", "drunet_cli", *map(str, arguments)]
    pid = os.spawnve(os.P_NOWAIT, sys.executable, command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024 / 1e9  # Linux counts in KiB


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_full_width_keras_file_imports_and_segments_a_whole_case_within_its_memory(tmp_path: Path) -> None:
    write_keras_h5(tmp_path / "full.h5", base_width=16)
    assert (tmp_path / "full.h5").stat().st_size > 76_516_708 * 4
    code, import_gb = _run("weights", "import", tmp_path / "full.h5")
    assert code == 0
    options = image_options(_brats_sized(tmp_path))
    code, segment_gb = _run("segment", *options, "-o", tmp_path / "seg.nii.gz", "--device", "cpu")
    assert code == 0
    assert json.loads((tmp_path / "seg.json").read_text())["weights"]["base_width"] == 16
    assert open_image(tmp_path / "seg.nii.gz").shape == (240, 240, _N_SLICES)
    print(f"peak memory: import {import_gb:.2f} GB, segment {segment_gb:.2f} GB")
    assert max(import_gb, segment_gb) < _LIMIT_GB
