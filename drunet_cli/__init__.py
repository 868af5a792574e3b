"""DR-Unet104 for brain tumour MRI: four NIfTI modalities in, a 3D label map out.

    from drunet_cli import Segmenter

    result = Segmenter("brats2020").segment(t1="t1.nii.gz", t1ce="t1ce.nii.gz", t2="t2.nii.gz", flair="flair.nii.gz")
    result.save("seg.nii.gz")

Every import of the package runs this file, so it holds the version and nothing heavy: names are imported when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from drunet_cli.segmentation.segmenter import SegmentedCase, Segmenter

__all__ = ["SegmentedCase", "Segmenter", "__version__"]
__version__ = "0.1.0"

_LAZY: Final = {"SegmentedCase": "drunet_cli.segmentation.segmenter", "Segmenter": "drunet_cli.segmentation.segmenter"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
