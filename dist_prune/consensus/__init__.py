"""Consensus: the mask that all samples agree on, collapse to a plain network, the sliced checkpoint."""

from dist_prune.consensus.collapse import Inherited, collapse, cut, masked
from dist_prune.consensus.mask import Mask, SiteMask, agrees, consensus_mask, load_mask, vote
from dist_prune.consensus.sliced import (
    add_results,
    find_sliced,
    input_shape_of,
    load_sliced,
    read_sliced_config,
    replace_folder,
    save_sliced,
)
from dist_prune.consensus.slicing import remove_units
from dist_prune.gates import strip_gates

__all__ = [
    "Inherited",
    "Mask",
    "SiteMask",
    "add_results",
    "agrees",
    "collapse",
    "consensus_mask",
    "cut",
    "find_sliced",
    "input_shape_of",
    "load_mask",
    "load_sliced",
    "masked",
    "read_sliced_config",
    "remove_units",
    "replace_folder",
    "save_sliced",
    "strip_gates",
    "vote",
]
