"""Sites: the places of a network where a structure can be switched off without breaking the computation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """One place that a gate controls.

    name: qualified name of the block in the plain network, for example ``layer1.0``;
    kind: ``layer`` (the residual branch, one unit);
    units: number of units that open and close on their own;
    may_be_empty: whether a path remains when every unit is closed (a shortcut, for layer sites).
    """

    name: str
    kind: str
    units: int
    may_be_empty: bool = True
