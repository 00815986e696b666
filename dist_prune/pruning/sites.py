"""Sites: the places of a network where a structure can be switched off without breaking the computation.

A site is plain data about a *plain* network. Slicing, MACs and the insertion of gates all read the same
description, so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChannelSlice:
    """Where a site's units lie in one module.

    module: qualified name in the plain network (``""``: the network's own operations); dim: ``out`` or ``in``
    of a convolution or linear layer, ``channels`` of what works channel by channel (norm, depthwise
    convolution, pooling); offset: position of the first unit; width: entries a unit takes (pixels of a
    flattened map in front of a linear layer); size: of what has no tensors to tell it (pooling), the number
    of all its entries.
    """

    module: str
    dim: str
    offset: int = 0
    width: int = 1
    size: int = 0

    def entries(self, unit: int) -> range:
        """The indices that a unit occupies."""
        start = self.offset + unit * self.width
        return range(start, start + self.width)


@dataclass(frozen=True)
class AbsorbedConstant:
    """A norm that turns closed units (zeros) into constants, and the layer behind it that takes them up."""

    norm: str
    consumer: str


@dataclass(frozen=True)
class Site:
    """One place that a gate controls.

    name: for layer sites the block, or the branch of it that the gate stands at; for channel sites the block
    or layer with the position, for example ``layer1.0.between``;
    kind: ``layer`` (a residual branch, one unit) or ``channel`` (feature maps, one unit each);
    units: number of units that open and close on their own; stage: the part of the network it belongs to;
    position: of channel sites, ``before``, ``between`` or ``after`` (Figure 3 of arXiv 2302.10798);
    block: the residual block it lies in, if it does: what is replaced when all units are closed;
    gate_at, behind: the module in front of which (or behind which) the gate stands;
    cuts: what goes with a closed unit; branch: modules that go when every unit is closed; folds: constants
    that closed units leave behind; may_be_empty: whether a path remains when every unit is closed.
    """

    name: str
    kind: str
    units: int
    stage: str = ""
    position: str = ""
    block: str = ""
    gate_at: str = ""
    behind: bool = False
    cuts: tuple[ChannelSlice, ...] = ()
    branch: tuple[str, ...] = ()
    folds: tuple[AbsorbedConstant, ...] = ()
    may_be_empty: bool = True
