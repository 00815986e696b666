"""Sites: the places of a network where a structure can be switched off without breaking the computation.

A site is plain data about a *plain* network. Slicing, MACs and the insertion of gates read the same description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dist_prune.errors import UserError


@dataclass(frozen=True)
class ChannelSlice:
    """The entries of one module that belong to a site's units.

    module: qualified name in the plain network; ``""`` for the network's own operations.
    dim: ``out`` or ``in`` of a convolution or linear layer; ``channels`` of what works channel by channel (norm,
        grouped convolution, pooling); of other modules, the name of a tensor.
    offset: position of the first unit.
    width: entries of one unit: pixels of a flattened map in front of a linear layer, else 1.
    size: number of all entries, where no tensor has it (pooling).
    entries: of each unit, where they are not adjacent, in the order of the units.
    """

    module: str
    dim: str
    offset: int = 0
    width: int = 1
    size: int = 0
    entries: tuple[tuple[int, ...], ...] = ()

    def of(self, unit: int) -> Sequence[int]:
        """Return the entries of a unit."""
        first = self.offset + unit * self.width
        return self.entries[unit] if self.entries else range(first, first + self.width)


@dataclass(frozen=True)
class IntAttribute:
    """A number that a module computes with, such as that of its heads; a closed unit takes ``per_unit`` of it."""

    module: str
    name: str
    per_unit: int


@dataclass(frozen=True)
class AbsorbedConstant:
    """A norm that turns closed units (zeros) into constants, and the layer behind it whose bias absorbs them."""

    norm: str
    consumer: str


# Frozen and with tuples only, so that sites can be keys of dictionaries and compare equal between ranks.
@dataclass(frozen=True)
class Site:
    """One place where units can be switched off.

    name: for layer sites the block, or its gated branch; for channel sites the block or layer with the position,
        for example ``layer1.0.between``.
    kind: ``layer`` (a residual branch, one unit) or ``channel`` (feature maps, one unit each).
    units: number of units that open and close independently.
    position: of channel sites, ``before``, ``between`` or ``after`` (Figure 3 of arXiv 2302.10798).
    block: the residual block around the site, which is replaced when all units are closed; None without one.
    gate_at: the module at which a gate is inserted, in front of it or ``behind`` it.
    slices: entries of modules that are removed with a closed unit.
    branch: modules that are removed when every unit is closed.
    absorbed: constants that closed units turn into.
    may_be_empty: true where a path remains when every unit is closed.
    axis: of the channels in the tensor that the gate reads and closes.
    channels: the unit of each channel of this tensor; empty where every channel is a unit.
    attributes: numbers that modules compute with.
    """

    name: str
    kind: str
    units: int
    position: str = ""
    block: str | None = None
    gate_at: str = ""
    behind: bool = False
    slices: tuple[ChannelSlice, ...] = ()
    branch: tuple[str, ...] = ()
    absorbed: tuple[AbsorbedConstant, ...] = ()
    may_be_empty: bool = True
    axis: int = 1
    channels: tuple[int, ...] = ()
    attributes: tuple[IntAttribute, ...] = ()

    @property
    def stage(self) -> str:
        """The part of the network whose blocks ``block`` is one of."""
        return (self.block or "").rpartition(".")[0]

    def within(self, module: str) -> Site:
        """Return this site of a module as a site of the network in which the module has this name."""

        def at(name: str) -> str:
            return f"{module}.{name}".strip(".")

        return replace(
            self,
            name=at(self.name),
            block=None if self.block is None else at(self.block),
            gate_at=at(self.gate_at),
            slices=tuple(replace(piece, module=at(piece.module)) for piece in self.slices),
            branch=tuple(map(at, self.branch)),
            absorbed=tuple(AbsorbedConstant(at(a.norm), at(a.consumer)) for a in self.absorbed),
        )

    def removes(self, module: str) -> bool:
        """Return True if a module of this name is removed when every unit is closed."""
        return f"{module}.".startswith(tuple(f"{gone}." for gone in self.branch))

    def check_units(self, kept: Sequence[int]) -> None:
        """Raise UserError if these units (their numbers) cannot be all that stay."""
        if any(not 0 <= unit < self.units for unit in kept) or len(set(kept)) != len(kept):
            raise UserError(f"'{self.name}': kept units must be distinct and in 0..{self.units - 1}")
        # A site without a shortcut is the only path through the network.
        if not kept and not self.may_be_empty:
            raise UserError(f"'{self.name}' has no shortcut, so one unit at least must stay")
