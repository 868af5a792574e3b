"""Time `drunet convert nii2png` against a plain loop, as whole processes, side by side in one run.

    python tests/benchmarks/convert.py CASE_FOLDER... [--repeats N]

The plain loop is nibabel, numpy and Pillow's `save`, one case after another, image and label slices. Prints the seconds for the
first case, those for all of them with several --jobs, and those of the PNG encoders alone. Every pixel of the first case is
compared. A CASE_FOLDER holds `*_flair.nii.gz` and so on, and `*_seg.nii.gz`.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from drunet_cli.host import cpu_name, granted_cpus
from drunet_cli.io.png import encode_slices

PLAIN_LOOP = """
import sys
from pathlib import Path
import nibabel as nib, numpy as np
from PIL import Image
output, *folders = map(Path, sys.argv[1:])
(output / "images").mkdir(parents=True)
(output / "masks").mkdir()
for folder in folders:
    channels = []
    for modality in ("flair", "t1ce", "t1", "t2"):
        volume = nib.load(next(folder.glob(f"*_{modality}.nii.gz"))).get_fdata()
        brain = volume > 0
        mean, deviation = volume[brain].mean(), volume[brain].std()
        scaled = np.where(brain, (volume - mean) / (3 * deviation / 128) + 127, 0)
        channels.append(np.clip(scaled, 0, 255).astype(np.uint8))
    image = np.stack(channels, axis=-1)
    for z in range(image.shape[2]):
        Image.fromarray(image[:, :, z]).save(output / "images" / f"{folder.name}_slice_{z}.png")
    labels = nib.load(next(folder.glob("*_seg.nii.gz"))).get_fdata()
    labels[labels == 4] = 3
    for z in range(labels.shape[2]):
        mask = np.repeat(labels[:, :, z, np.newaxis], 3, axis=2).astype(np.uint8)
        Image.fromarray(mask).save(output / "masks" / f"{folder.name}_slice_{z}.png")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{cpu_name()}, {granted_cpus()} CPUs")
    with tempfile.TemporaryDirectory() as scratch:
        first = arguments.cases[:1]
        one = compare(Path(scratch), first, repeats=arguments.repeats, jobs=[granted_cpus()])
        compare_pixels(Path(scratch), one)
        if len(arguments.cases) > 1:
            compare(Path(scratch), arguments.cases, repeats=max(1, arguments.repeats // 2), jobs=sorted({1, 2, granted_cpus()}))
        encoders(Path(scratch) / one[0])


def compare(scratch: Path, folders: list[Path], *, repeats: int, jobs: list[int]) -> list[str]:
    """In turn; the median of the repeats. Returns the folders that the last round wrote, the plain loop's first."""
    names = {"plain loop": 0, **{f"drunet, --jobs {n}": n for n in jobs}}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    outputs = [f"{index}-of-{len(folders)}" for index in range(len(names))]
    for _ in range(repeats):
        for (name, n_jobs), output in zip(names.items(), outputs, strict=True):
            shutil.rmtree(scratch / output, ignore_errors=True)
            command = [sys.executable, "-c", PLAIN_LOOP, str(scratch / output), *map(str, folders)]
            if n_jobs:
                command = [sys.executable, "-m", "drunet_cli", "convert", "nii2png", *map(str, folders)]
                command += ["-o", str(scratch / output), "--jobs", str(n_jobs), "--quiet"]
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begin)
    plain = float(np.median(seconds["plain loop"]))
    print(f"| {len(folders)} case(s), whole process | seconds | plain loop / this |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {np.median(times):.2f} | {plain / np.median(times):.2f} |", flush=True)
    return outputs


def compare_pixels(scratch: Path, outputs: list[str]) -> None:
    """Raises where a pixel differs."""
    plain, ours = (scratch / output for output in outputs)
    names = [path.relative_to(plain) for path in plain.glob("*/*.png")]
    for name in names:
        np.testing.assert_array_equal(np.asarray(Image.open(ours / name)), np.asarray(Image.open(plain / name)))
    print(f"{len(names)} slices, no pixel differs")


def encoders(folder: Path) -> None:
    """Slices in memory to files in memory, one thread."""
    slices = [np.asarray(Image.open(path)) for path in sorted(folder.glob("images/*.png"))]

    def pillow(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    print("| encoder | seconds | MB |\n|---|---|---|")
    for name, encode in (("Pillow's save", pillow), ("drunet's", lambda pixels: encode_slices(pixels[np.newaxis])[0])):
        begin = time.perf_counter()
        n_bytes = sum(len(encode(pixels)) for pixels in slices)
        print(f"| {name} | {time.perf_counter() - begin:.2f} | {n_bytes / 1e6:.2f} |")


if __name__ == "__main__":
    main()
