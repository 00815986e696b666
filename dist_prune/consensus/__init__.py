"""Consensus: the mask that all samples agree on, collapse to a plain network, the sliced checkpoint."""

from dist_prune.consensus.collapse import collapse, cut, masked, remove_units, strip_gates
from dist_prune.consensus.mask import Mask, SiteMask, consensus_mask, load_mask, vote
from dist_prune.consensus.sliced import load_sliced, read_sliced_config, save_sliced

__all__ = [
    "Mask",
    "SiteMask",
    "collapse",
    "consensus_mask",
    "cut",
    "load_mask",
    "load_sliced",
    "masked",
    "read_sliced_config",
    "remove_units",
    "save_sliced",
    "strip_gates",
    "vote",
]
