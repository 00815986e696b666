"""Layer sites: the residual branches of known families, each of them one unit.

ResNet blocks are described by their ``ResidualForm``. In other families a branch is one child of its block, whose
output is added to the shortcut: a gate at that child opens and closes the branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torchvision.models.convnext import CNBlock
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.vision_transformer import EncoderBlock

from dist_prune.pruning.replacement_blocks import open_to_sites
from dist_prune.pruning.residual import residual_form
from dist_prune.pruning.sites import Site


@dataclass(frozen=True)
class Branch:
    """A branch of a block: the child whose output the gate multiplies, and all children that only the branch uses."""

    child: str
    needs: tuple[str, ...]


def branches(block: nn.Module) -> tuple[Branch, ...]:
    """Return the branches of a block of a known family other than ResNets; empty for any other module."""
    # Blocks without a shortcut have no branch: closing one would leave no path.
    if isinstance(block, InvertedResidual) and block.use_res_connect:
        return (Branch("conv", ("conv",)),)
    if isinstance(block, CNBlock):
        return (Branch("block", ("block",)),)
    # Each branch takes its norm along: nothing else reads it. (torchvision's dropout follows attention only.)
    if isinstance(block, EncoderBlock):
        attention = Branch("self_attention", ("ln_1", "self_attention", "dropout"))
        return (attention, Branch("mlp", ("ln_2", "mlp")))
    return ()


def layer_sites(plain: nn.Module) -> tuple[Site, ...]:
    """Return all layer sites of a plain network, in its order."""
    return tuple(site for name, block in open_to_sites(plain) for site in _sites_of(name, block))


def _sites_of(name: str, block: nn.Module) -> Iterator[Site]:
    stage = name.rpartition(".")[0]
    if form := residual_form(block):
        needs = tuple(f"{name}.{child}" for child in form.branch_modules(block))
        yield Site(name, "layer", 1, stage, block=name, gate_at=name, branch=needs)
    for branch in branches(block):
        at = f"{name}.{branch.child}"
        needs = tuple(f"{name}.{child}" for child in branch.needs)
        yield Site(at, "layer", 1, stage, block=name, gate_at=at, branch=needs)
