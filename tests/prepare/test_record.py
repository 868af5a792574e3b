"""Labels carried to a raw scan's grid lie where the tumour lies in the scan, and keep the scan's geometry."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from drunet_cli.brats import Modality, TumourClass, dice_of
from drunet_cli.errors import CaseError
from drunet_cli.io.case import Case
from drunet_cli.io.geometry import Affine
from drunet_cli.io.nifti import Header
from drunet_cli.prepare.grid import BRATS_AFFINE
from drunet_cli.prepare.record import NativeSpace, labels_in, needed_origin

MIDDLE_MM = np.array([-100.0, 130, 80])  # of the tumour on the BraTS grid
SHAPE = (80, 70, 60)  # of the part of the BraTS grid around it
AFFINE = BRATS_AFFINE @ np.array([[1.0, 0, 0, 60], [0, 1, 0, 75], [0, 0, 1, 50], [0, 0, 0, 1]])


def blob(affine: Affine, shape: tuple[int, int, int], to_grid: Affine) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An ellipsoid of oedema around a ball of enhancing tumour, at the voxels of any grid."""
    indices = np.indices(shape).reshape(3, -1)
    places = (to_grid @ affine)[:3, :3] @ indices + (to_grid @ affine)[:3, 3:]
    offset = places - MIDDLE_MM[:, np.newaxis]
    outer, inner = (np.linalg.norm(offset / np.array([[a], [b], [c]]), axis=0) < 1 for a, b, c in ((30, 22, 18), (12, 12, 12)))
    classes = np.where(inner, TumourClass.ET, np.where(outer, TumourClass.ED, TumourClass.BACKGROUND))
    return np.asarray(classes.reshape(shape), dtype=np.uint8)


@pytest.mark.parametrize(("slice_mm", "least"), [(1.0, 0.97), (5.0, 0.95)])
def test_labels_lie_where_the_tumour_is(slice_mm: float, least: float) -> None:
    to_grid = np.eye(4)
    to_grid[:3, :3] = Rotation.from_euler("xyz", (9, -7, 10), degrees=True).as_matrix()
    to_grid[:3, 3] = np.array([-95, 135, 74]) - to_grid[:3, :3] @ MIDDLE_MM  # moved by some millimetres
    scan = np.array([[0, 0, slice_mm, -135], [0, -1, 0, 175], [-1, 0, 0, 114], [0, 0, 0, 1.0]])
    shape = (80, 80, round(80 / slice_mm))
    space = NativeSpace(Modality.T1CE, "t1ce.nii", Header(), shape, scan, to_grid)
    prepared = blob(AFFINE, SHAPE, np.eye(4))
    true = blob(scan, shape, to_grid)
    found = labels_in(prepared, AFFINE, space)
    assert true.any()
    for classes in ((1, 2, 3), (3,)):
        one, other = np.isin(found, classes), np.isin(true, classes)
        assert dice_of(*(int(np.count_nonzero(mask)) for mask in (one & other, one, other))) > least
    assert not labels_in(np.zeros_like(prepared), AFFINE, space).any()
    elsewhere = replace(space, affine=scan + 500 * np.eye(4, k=3))
    assert not labels_in(prepared, AFFINE, elsewhere).any()


def test_a_case_that_was_not_prepared_has_no_way_back(tmp_path: Path) -> None:
    case = Case("p1", dict.fromkeys(Modality, tmp_path / "p1_flair.nii.gz"))
    (tmp_path / "p1.json").write_text('{"schema": "drunet.preparation/1"}')
    with pytest.raises(CaseError, match="p1: is not a case that drunet prepare has made"):
        needed_origin(case, {})
