"""Networks: sites, CIFAR ResNets, the residual blocks of other libraries, and building by name."""

from dist_prune.models.build import Architecture, architecture_of, build_model, remember
from dist_prune.models.residual import ResidualForm, residual_blocks, residual_form
from dist_prune.models.sites import Site

__all__ = [
    "Architecture",
    "ResidualForm",
    "Site",
    "architecture_of",
    "build_model",
    "remember",
    "residual_blocks",
    "residual_form",
]
