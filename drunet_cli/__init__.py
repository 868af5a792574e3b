"""DR-Unet104 for brain tumour MRI: four NIfTI modalities in, a 3D label map out.

Every import of the package runs this file, so it holds the version and nothing heavy.
"""

__version__ = "0.1.0.dev0"
