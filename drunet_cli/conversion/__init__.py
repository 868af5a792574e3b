"""Datasets of cases to PNG slices, and PNG slices to label maps."""
