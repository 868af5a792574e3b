"""How well `drunet prepare` finds the place of scans, on scans of real brains whose place is known.

    python -m tests.benchmarks.prepare CASE_FOLDER... [--scans 60] [--reference-mm 1] [--plain 3]

Case folders hold a segmentation. Each case gets a skull and a scalp (tests/prepare/simulated.py). Its T1ce is scanned as the
reference, in the patient's own axes; T1, T2 and FLAIR after movements of up to 20 degrees about any axis and 30 mm, in any
orientation, with slices of 1 to 6 mm, noise and a bias field. Prints for each scan how far its registration places the brain's
voxels from where they belong, on average and at most, how well edges agree, whether drunet warns, and how long registration
took; then how many scans are found to within 1.5 mm, and how well the edges of other patients' scans agree, at which drunet
must warn.

--reference-mm: slices of the reference, 0 for 1 to 6 mm in any orientation. --plain: so many scans are also registered by a
plain call of SimpleITK at full resolution, with the same measure and optimiser.

The segmentation is carried to the grid of each scan, and back, by the true transform: prints the Dice of the whole tumour.
"""

import argparse
import time
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from drunet_cli.brats import CHANNELS, Modality
from drunet_cli.evaluation.scores import dice
from drunet_cli.host import cpu_name, granted_cpus
from drunet_cli.io.case import Case
from drunet_cli.io.discovery import find_cases
from drunet_cli.io.geometry import Affine
from drunet_cli.io.nifti import new_header, volume_of
from drunet_cli.io.volumes import class_map_of, read_labelled
from drunet_cli.prepare.record import NativeSpace, labels_in
from drunet_cli.prepare.registration import FINEST_MM, move_of, register, resampled
from drunet_cli.prepare.scans import Registration, Scan, registration_warnings, similarities
from tests.prepare.simulated import Acquisition, SimulatedHead, SimulatedScan, error_mm, in_skull, movement, scan_of
from tests.support import AXCODES

FOUND_MM: Final = 1.5
MOVED: Final = tuple(modality for modality in CHANNELS if modality is not Modality.T1CE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, nargs="+")
    parser.add_argument("--scans", type=int, default=60)
    parser.add_argument("--reference-mm", type=float, default=1.0)
    parser.add_argument("--plain", type=int, default=3)
    arguments = parser.parse_args()
    cases = find_cases(arguments.cases).cases
    print(f"{cpu_name()}, {granted_cpus()} CPUs, one thread a registration")
    print("| case | scan | axes, slices | degrees | mm | error: mean | at most | edges | warns | s | plain: mean | s |")
    print(f"|{'---|' * 12}")
    errors: list[tuple[float, float, bool]] = []
    strangers: list[float] = []
    labels: list[tuple[float, float]] = []
    other: Scan | None = None
    while len(errors) < arguments.scans:
        turn = len(errors) // len(MOVED)
        case = cases[turn % len(cases)]
        head = head_of_case(case)
        rng = np.random.default_rng(turn)
        how = any_acquisition(rng) if arguments.reference_mm == 0 else Acquisition(slice_mm=arguments.reference_mm)
        reference = scan_of(head, Modality.T1CE, how)
        if other is not None:
            strangers.append(edges_of_stranger(head, reference, other))
        for modality in MOVED[: arguments.scans - len(errors)]:
            movement_, acquisition = movement(head, rng), any_acquisition(rng)
            scan = scan_of(head, modality, acquisition, movement_)
            labels.append((acquisition.slice_mm, dice_there_and_back(head, scan)))
            errors.append(
                one_scan(head, case.name, reference, scan, acquisition, modality, plain=len(errors) < arguments.plain)
            )
            other = raw(scan, modality)
    tell_errors(np.array(errors))
    print(f"scans of another patient: {len(strangers)}, edges {', '.join(f'{peak:.2f}' for peak in sorted(strangers))}")
    print("whole tumour to a scan's grid and back, Dice:")
    for least, most in ((1, 2), (2, 3), (3, 4), (4, 5), (5, 6)):
        found = [score for slice_mm, score in labels if least <= slice_mm < most]
        if found:
            print(f"  slices of {least} to {most} mm: {len(found)} scans, mean {np.mean(found):.3f}, least {min(found):.3f}")


def head_of_case(case: Case) -> SimulatedHead:
    """A real brain, which is stripped, in a synthetic skull."""
    labelled = read_labelled(case)
    assert labelled.segmentation is not None, f"{case.name} has no segmentation"
    volumes = labelled.images.volumes
    class_map, _ = class_map_of(labelled.segmentation.volume)
    return in_skull({m: volume.voxels for m, volume in volumes.items()}, class_map, volumes[Modality.FLAIR].affine, seed=0)


def any_acquisition(rng: np.random.Generator) -> Acquisition:
    """Any orientation, slices of 1 to 6 mm, and 0.7 to 1.2 mm within a slice."""
    return Acquisition(
        axcodes=str(rng.choice(AXCODES)),
        spacing_mm=float(rng.uniform(0.7, 1.2)),
        slice_mm=float(rng.uniform(1, 6)),
        seed=int(rng.integers(2**31)),
    )


def tell_errors(errors: npt.NDArray[np.float64]) -> None:
    """errors: [N, 3], of each scan the mean and the largest, and whether drunet warned."""
    mean, most, warned = errors.T
    print(f"{len(errors)} scans, of which are found to within {FOUND_MM} mm:")
    for words, error in (("on average over the brain", mean), ("everywhere in the brain", most)):
        found = error <= FOUND_MM
        print(f"  {words}: {np.mean(found):.1%}; median {np.median(error):.2f} mm, worst {error.max():.1f} mm")
        print(f"    others: {np.count_nonzero(~found)}, warned of: {np.count_nonzero(~found & (warned > 0))}")
    print(f"warnings about found scans: {np.count_nonzero((warned > 0) & (mean <= FOUND_MM))}")


def one_scan(
    head: SimulatedHead,
    case: str,
    reference: SimulatedScan,
    scan: SimulatedScan,
    how: Acquisition,
    modality: Modality,
    *,
    plain: bool,
) -> tuple[float, float, bool]:
    """Mean and largest error of a scan's registration, and whether there is a warning."""
    true = reference.transform @ np.linalg.inv(scan.transform)
    scans = {Modality.T1CE: raw(reference, Modality.T1CE), modality: raw(scan, modality)}
    begin = time.perf_counter()
    found = register(scans[modality].coarse, scans[Modality.T1CE].coarse)
    seconds = time.perf_counter() - begin
    error = error_mm(found, true, head, of=scan.transform)
    peak, warns = edges_of(head, scans, found, modality)
    by_plain = " |"
    if plain:
        begin = time.perf_counter()
        other = error_mm(plain_registration(scan, reference), true, head, of=scan.transform)
        by_plain = f" {other.mean():.2f} | {time.perf_counter() - begin:.1f}"
    shift, degrees = move_of(scan.transform, head.centre_mm)
    print(
        f"| {case} | {modality} | {how.axcodes} {how.slice_mm:.1f} | {degrees:.0f} | {shift:.0f} | {error.mean():.2f} | "
        f"{error.max():.2f} | {peak:.2f} | {'yes' if warns else ''} | {seconds:.1f} |{by_plain} |",
        flush=True,
    )
    return float(error.mean()), float(error.max()), warns


def raw(scan: SimulatedScan, modality: Modality) -> Scan:
    return Scan(volume_of(scan.voxels, scan.affine, name=modality), modality)


def edges_of(head: SimulatedHead, scans: dict[Modality, Scan], found: Affine, modality: Modality) -> tuple[float, bool]:
    """How well edges of registered scans agree within the true brain, and whether drunet warns."""
    coarse = scans[Modality.T1CE].coarse
    inside = resampled(head.brain.view(np.uint8), head.affine, coarse.affine, coarse.voxels.shape) >= 0.5
    registrations = {modality: Registration(found, *move_of(found, coarse.centre_mm))}
    similar = similarities(scans, Modality.T1CE, registrations, inside)
    return similar[modality].edge_peak, bool(registration_warnings(scans, registrations, similar, Modality.T1CE))


def edges_of_stranger(head: SimulatedHead, reference: SimulatedScan, other: Scan) -> float:
    """How well the edges of another patient's scan agree after registration."""
    scans = {Modality.T1CE: raw(reference, Modality.T1CE), other.modality: other}
    found = register(other.coarse, scans[Modality.T1CE].coarse)
    return edges_of(head, scans, found, other.modality)[0]


def dice_there_and_back(head: SimulatedHead, scan: SimulatedScan) -> float:
    """Dice of the whole tumour with itself, carried to a scan's grid and back by the true transform."""
    i, j, k = scan.voxels.shape
    header = new_header(scan.voxels.shape, np.uint8, scan.affine)
    to_head = np.asarray(np.linalg.inv(scan.transform))
    on_scan = labels_in(head.class_map, head.affine, NativeSpace(Modality.T1, "scan", header, (i, j, k), scan.affine, to_head))
    i, j, k = head.class_map.shape
    back = labels_in(on_scan, scan.affine, NativeSpace(Modality.T1, "head", header, (i, j, k), head.affine, scan.transform))
    return dice(back > 0, head.class_map > 0)


def plain_registration(scan: SimulatedScan, reference: SimulatedScan) -> Affine:
    """What a user would write: three levels down to the full resolution, from the middles of the fields of view."""
    import SimpleITK as sitk  # noqa: N813  # as all its users do

    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])

    def image_of(one: SimulatedScan) -> sitk.Image:
        affine = to_lps @ one.affine
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        image = sitk.GetImageFromArray(one.voxels.T.astype(np.float32))
        image.SetSpacing(sizes.tolist())
        image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        return image

    fixed, moving = image_of(reference), image_of(scan)
    begin = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(48)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(learningRate=FINEST_MM, minStep=0.01, numberOfIterations=100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(begin, inPlace=True)
    method.Execute(fixed, moving)
    transform = sitk.Euler3DTransform(begin)
    matrix, centre = np.eye(4), np.array(transform.GetCenter())
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return np.asarray(to_lps @ np.linalg.inv(matrix) @ to_lps)


if __name__ == "__main__":
    main()
