"""Consensus: the mask that all samples agree on, collapse to a plain network, the sliced checkpoint."""
