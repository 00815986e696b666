"""Networks: sites, CIFAR ResNets, the residual blocks of other libraries, and building by name."""

from dist_prune.models.build import Architecture, architecture_of, build_model, in_eval_mode, remember
from dist_prune.models.channels import POSITIONS, channel_sites
from dist_prune.models.folding import fold, foldable_norms
from dist_prune.models.layers import Branch, branches, layer_sites
from dist_prune.models.residual import ResidualForm, residual_blocks, residual_form
from dist_prune.models.sites import Cut, Fold, Site

__all__ = [
    "POSITIONS",
    "Architecture",
    "Branch",
    "Cut",
    "Fold",
    "ResidualForm",
    "Site",
    "architecture_of",
    "branches",
    "build_model",
    "channel_sites",
    "fold",
    "foldable_norms",
    "in_eval_mode",
    "layer_sites",
    "remember",
    "residual_blocks",
    "residual_form",
]
