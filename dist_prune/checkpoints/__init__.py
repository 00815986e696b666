"""Checkpoints: their format, the writer, and what a run continues from."""
