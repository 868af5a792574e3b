"""Make the README's picture, .github/preview.png: the picture of `drunet demo`, at half its size.

python -m tests.benchmarks.readme_picture
"""

import tempfile
from pathlib import Path

from PIL import Image

from drunet_cli.cli.app import main as drunet

PICTURE = Path(__file__).parents[2] / ".github" / "preview.png"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if (code := drunet(["demo", "-o", folder])) != 0:
            raise SystemExit(code)
        (drawn,) = Path(folder).glob("*_preview.png")
        picture = Image.open(drawn).convert("RGB")
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    half.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE.name}: {half.width} x {half.height} pixels, {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
