"""How well a segmentation agrees with a reference: array functions, numpy and scipy, no files and no torch."""
