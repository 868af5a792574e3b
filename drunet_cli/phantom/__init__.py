"""A seeded synthetic case: a brain with a glioma, and the truth."""
