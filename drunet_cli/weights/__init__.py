"""Weights: the table of layers that they fill, the files that hold them, and the cache."""
