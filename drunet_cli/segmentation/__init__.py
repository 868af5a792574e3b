"""A case in, a label map out."""
