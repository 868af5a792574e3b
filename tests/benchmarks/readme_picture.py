"""Make the README's picture, .github/preview.png: a synthetic case with its true labels, at half the size of a preview.

python tests/benchmarks/readme_picture.py
"""

import io
from pathlib import Path

from PIL import Image

from drunet_cli.brats import Modality, volumes_ml, voxel_counts
from drunet_cli.io.phantom.phantom import make_phantom
from drunet_cli.segmentation.preview import draw_preview

PICTURE = Path(__file__).parents[2] / ".github" / "preview.png"
ML_PER_VOXEL = 0.001


def main() -> None:
    phantom = make_phantom(0)
    png = draw_preview(
        phantom.images[Modality.FLAIR],
        phantom.images[Modality.T1CE],
        phantom.class_map,
        affine=phantom.affine,
        name="phantom_0 (synthetic, true labels)",
        volumes_ml=volumes_ml(voxel_counts(phantom.class_map), ML_PER_VOXEL),
    )
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    half.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
