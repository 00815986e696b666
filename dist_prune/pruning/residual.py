"""Residual blocks of known families, described as act(shortcut(x) + F(x)) without editing their code.

A form computes F from a block's own children and names the child that is its shortcut and the one that is its last
activation. A further family is one more entry of ``_forms``.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import Tensor, nn


@dataclass(frozen=True)
class ResidualForm:
    """The parts of act(shortcut(x) + F(x)) in the blocks of one family.

    branch: (block, x) -> F(x).
    activation: name of the child that is applied to the sum.
    shortcut: name of the child that transforms the shortcut; it is None in blocks that keep x.
    """

    branch: Callable[[nn.Module, Tensor], Tensor]
    activation: str
    shortcut: str = "downsample"

    def branch_modules(self, block: nn.Module) -> list[str]:
        """Return the names of the children that only F uses (and, where it is shared, its activation)."""
        return [name for name, _ in block.named_children() if name != self.shortcut]


def _basic(block: Any, x: Tensor) -> Tensor:
    return block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))


def _bottleneck(block: Any, x: Tensor) -> Tensor:
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.relu(block.bn2(block.conv2(out)))
    return block.bn3(block.conv3(out))


def _timm_basic(block: Any, x: Tensor) -> Tensor:
    out = block.aa(block.act1(block.drop_block(block.bn1(block.conv1(x)))))
    return _timm_tail(block, block.bn2(block.conv2(out)))


def _timm_bottleneck(block: Any, x: Tensor) -> Tensor:
    out = block.act1(block.bn1(block.conv1(x)))
    out = block.aa(block.act2(block.drop_block(block.bn2(block.conv2(out)))))
    return _timm_tail(block, block.bn3(block.conv3(out)))


def _timm_tail(block: Any, out: Tensor) -> Tensor:
    # Blocks without squeeze-excitation or stochastic depth have None in their place.
    out = out if block.se is None else block.se(out)
    return out if block.drop_path is None else block.drop_path(out)


def _forms() -> dict[type[nn.Module], ResidualForm]:
    resnet = torchvision.models.resnet
    forms: dict[type[nn.Module], ResidualForm] = {
        resnet.BasicBlock: ResidualForm(_basic, "relu"),
        resnet.Bottleneck: ResidualForm(_bottleneck, "relu"),
    }
    # timm is optional and slow to import. Where a timm model exists, its module is loaded.
    if timm_resnet := sys.modules.get("timm.models.resnet"):
        forms[timm_resnet.BasicBlock] = ResidualForm(_timm_basic, "act2")
        forms[timm_resnet.Bottleneck] = ResidualForm(_timm_bottleneck, "act3")
    return forms


def residual_form(module: nn.Module) -> ResidualForm | None:
    """Return the form of a residual block, or None for any other module.

    A subclass counts as long as it keeps its family's forward.
    """
    # A forward of its own may compute something else than the form: such a block is no site.
    for family, form in _forms().items():
        if isinstance(module, family) and type(module).forward is family.forward:
            return form
    return None


def form_of(block: nn.Module) -> ResidualForm:
    """Return the form of a block that is known to be residual."""
    form = residual_form(block)
    assert form is not None, f"{type(block).__name__} is not a residual block of a known family"
    return form


def residual_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return all residual blocks of known families by qualified name, in the order of the network."""
    return {name: module for name, module in model.named_modules() if residual_form(module) is not None}
