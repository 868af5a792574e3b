"""The model and its weights."""
