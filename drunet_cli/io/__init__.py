"""Files to arrays and back: numpy and nibabel, no torch."""
