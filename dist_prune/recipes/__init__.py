"""Recipes: named runs as functions that return a RunConfig; the docstring gives command, time and expected result."""

from __future__ import annotations

from dist_prune.config import RunConfig
from dist_prune.errors import UserError, nearest
from dist_prune.recipes import cifar10, digits, imagenet, paper
from dist_prune.recipes.catalog import Recipe

RECIPES: dict[str, Recipe] = {
    digits.digits.__name__: digits.digits,
    **cifar10.CATALOG,
    **paper.CATALOG,
    **imagenet.CATALOG,
}


def recipe(name: str) -> RunConfig:
    """The recipe called ``name``; raises UserError that names the nearest one."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe '{name}'; {nearest(name, RECIPES)}")
    return RECIPES[name]()
