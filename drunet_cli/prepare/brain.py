"""The brain in a scan of a head: by a network, by another program, by a mask of the user's, or by the scan's own background."""

import os
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from drunet_cli.errors import CaseError, DeviceError, MisuseError, one_line
from drunet_cli.host import may_have_gpu
from drunet_cli.io.atomic import publish, temporary_folder
from drunet_cli.io.checks import same_grid
from drunet_cli.io.geometry import Affine, box_of
from drunet_cli.io.nifti import Grid, Volume, encode_map, load_volume, new_header
from drunet_cli.prepare.registration import isotropic

Mask = npt.NDArray[np.bool_]

# Brains of adults have 1.0 to 1.8 litres, a child's from 0.7 on; a head without its skull cut away has more than 2.2.
LITRES: Final = (0.7, 2.2)
_NETWORK_MM: Final = 1.0  # the networks' own training images; and a mask of thick slices has steps
_INSIDE: Final = 0.5
_TOUCHES: Final = 0.002  # the share of the outer planes of a field of view that a brain may reach by chance
_LONGEST_RUN_S: Final = 3600.0


class BrainMethod(StrEnum):
    """The method that finds the brain, where no mask is given."""

    AUTO = "auto"
    DEEPBET = "deepbet"
    HD_BET = "hd-bet"
    SYNTHSTRIP = "synthstrip"
    NONE = "none"  # everything above 0


SYNTHSTRIP_COMMANDS: Final = ("mri_synthstrip", "nipreps-synthstrip")
OWN_BACKGROUND: Final = "own background"


@dataclass(frozen=True)
class Brain:
    """A brain mask, and where its voxels lie.

    mask: [I, J, K]. affine: voxel indices to RAS millimetres. scan: the grid that the brain was found on. method: as records
    name it. tools: names and versions of what found it. sha256: of the file of a mask that was given.
    """

    mask: Mask
    affine: Affine
    scan: Grid
    method: str
    tools: Mapping[str, str]
    sha256: str | None = None

    @property
    def cut_off(self) -> bool:
        """Whether the brain reaches the scan's outermost planes, so that part of it is likely not in the scan."""
        to_mask = np.linalg.inv(self.affine) @ self.scan.affine
        for axis, n_planes in enumerate(self.scan.shape):
            size = [1 if each == axis else n for each, n in enumerate(self.scan.shape)]
            for index in (0, n_planes - 1):
                start = to_mask[:3, axis] * index + to_mask[:3, 3]
                # The nearest voxels of the mask, as its cubes and a tilted plane do not meet.
                plane = ndimage.affine_transform(self.mask, to_mask[:3, :3], start, output_shape=size, order=0, mode="nearest")
                if np.count_nonzero(plane) > _TOUCHES * plane.size:
                    return True
        return False


def chosen_method(method: BrainMethod, *, stripped: bool) -> str:
    """The method that finds the brain; for `auto` one that is installed. Raises MisuseError for a program that is not.

    stripped: whether the scans have a background of 0 around brains already.
    """
    if method is BrainMethod.AUTO and stripped:
        return OWN_BACKGROUND
    if method is BrainMethod.AUTO:
        faster = [name for name in (BrainMethod.HD_BET, BrainMethod.SYNTHSTRIP) if _command_of(name)]
        return faster[0] if faster and may_have_gpu() else BrainMethod.DEEPBET
    if method in (BrainMethod.HD_BET, BrainMethod.SYNTHSTRIP) and _command_of(method) is None:
        names = " or ".join((BrainMethod.HD_BET,) if method is BrainMethod.HD_BET else SYNTHSTRIP_COMMANDS)
        raise MisuseError(f"--brain {method}: no program {names} on PATH; install it, or give --brain deepbet")
    return method


def find_brain(scan: Volume, method: str, *, threads: int) -> Brain:
    """The brain in a scan, on cubes of 1 mm that cover the scan. method: as `chosen_method` gives it, of a scan with skull.

    Raises CaseError where no brain is found, and DeviceError where a program fails.
    """
    image = isotropic(scan.voxels, scan.affine, size_mm=_NETWORK_MM)
    if method == BrainMethod.NONE:
        return Brain(np.asarray(image.voxels > 0), image.affine, scan, method, {})
    if method == BrainMethod.DEEPBET:
        mask, tools = _by_deepbet(image.voxels, image.affine, threads), {"deepbet": _version_of("deepbet")}
    else:
        command = _command_of(BrainMethod(method))
        assert command is not None, "looked for when the method was chosen"
        mask, tools = _by_command(command, image.voxels, image.affine, threads), {Path(command).name: _version_of(method)}
    mask = one_solid_part(mask)
    if not mask.any():
        raise CaseError(f"{scan.path}: {method} finds no brain; look at the scan, or give a mask by --brain FILE")
    return Brain(mask, image.affine, scan, method, tools)


def read_mask(path: Path, scans: Sequence[Grid]) -> tuple[Brain, int]:
    """A mask of the user's, and the place in `scans` of the scan whose grid it is on. Raises CaseError for any other file."""
    volume = load_volume(path)
    found = [n for n, scan in enumerate(scans) if same_grid(volume, scan)]
    if not found:
        raise CaseError(f"{path}: this brain mask is on the grid of none of the four scans; give one that was made of a scan")
    mask = np.asarray(volume.voxels > 0)
    if not mask.any() or mask.all():
        raise CaseError(f"{path}: this brain mask has no voxel {'of 0' if mask.any() else 'above 0'}")
    assert volume.source is not None, "read from a file"
    return Brain(mask, volume.affine, volume, str(path), {}, volume.source.sha256), found[0]


def _by_deepbet(voxels: npt.NDArray[np.float32], affine: Affine, threads: int) -> Mask:
    """Source: Fisch et al., deepbet: Fast brain extraction of T1-weighted MRI (Computers in Biology and Medicine 2024)."""
    import nibabel as nib
    import torch
    from deepbet import BrainExtraction

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of functions of PyTorch that deepbet uses and that will go
            # On the CPU, whose answer does not depend on the machine; the voxels are along R, A and S already.
            _, mask, _ = BrainExtraction(no_gpu=True).run(nib.Nifti1Image(voxels, affine))
    except (AssertionError, ValueError):  # not enough foreground, or no component at all
        return np.zeros(voxels.shape, dtype=np.bool_)
    finally:
        torch.set_num_threads(before)
    return np.asarray(mask.dataobj) > 0


def _by_command(command: str, voxels: npt.NDArray[np.float32], affine: Affine, threads: int) -> Mask:
    """Run a program on the image in a folder of its own. What the program leaves of the image is the brain.

    hd-bet -i IN -o OUT; mri_synthstrip or nipreps-synthstrip -i IN -o OUT, as their help has it.
    """
    with temporary_folder() as folder:
        source, target = folder / "head.nii.gz", folder / "brain.nii.gz"
        publish(source, encode_map(voxels, new_header(voxels.shape, np.float32, affine), compress=True), overwrite=False)
        device = ["-device", "cpu"] if Path(command).name == BrainMethod.HD_BET and not may_have_gpu() else []
        try:
            done = subprocess.run(  # noqa: S603  # the program that the user has installed under this name
                [command, "-i", str(source), "-o", str(target), *device],
                capture_output=True,
                text=True,
                errors="replace",
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                timeout=_LONGEST_RUN_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DeviceError(f"{command}: cannot be run: {one_line(str(error))}; give --brain deepbet") from error
        if done.returncode != 0 or not target.is_file():
            last = one_line((done.stderr or done.stdout).strip().rpartition("\n")[2])[-_LONGEST_MESSAGE:]
            raise DeviceError(f"{command}: failed with exit code {done.returncode}: {last or 'no message'}")
        stripped = load_volume(target)
    if stripped.shape != voxels.shape:
        raise DeviceError(f"{command}: wrote an image of another size than it was given; give --brain deepbet")
    return np.asarray(stripped.voxels != 0)


_LONGEST_MESSAGE: Final = 300


def one_solid_part(mask: Mask) -> Mask:
    """The largest connected part, without holes."""
    parts, n_parts = ndimage.label(mask)
    if n_parts > 1:
        mask = np.asarray(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
    solid = np.zeros_like(mask)
    if box := box_of(mask):
        # What does not hang together with the outside: SciPy's binary_fill_holes finds the same, and is slower.
        around, _ = ndimage.label(np.pad(~mask[box], 1, constant_values=True))
        solid[box] = (around != around[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return solid


def _command_of(method: str) -> str | None:
    names = {BrainMethod.HD_BET: (BrainMethod.HD_BET.value,), BrainMethod.SYNTHSTRIP: SYNTHSTRIP_COMMANDS}[BrainMethod(method)]
    return next((found for name in names if (found := shutil.which(name))), None)


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def stripped_brain(masks: Sequence[npt.NDArray[Any]]) -> Mask:
    """The brain of scans that are stripped already: where the mean of their masks, 0 to 1 on one grid, is a half or more."""
    return one_solid_part(np.asarray(np.mean(masks, axis=0) >= _INSIDE))
