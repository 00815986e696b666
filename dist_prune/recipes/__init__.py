"""Recipes: named runs as functions that return a RunConfig; the docstring says what to expect."""

from __future__ import annotations

from collections.abc import Callable

from dist_prune.config import RunConfig
from dist_prune.errors import UserError, nearest
from dist_prune.recipes import cifar10, digits

RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        digits.digits,
        cifar10.cifar10_resnet20_dense,
        cifar10.cifar10_resnet20_half,
        cifar10.cifar10_resnet110_paper,
        cifar10.cifar10_resnet110_lambda_up,
    )
}


def recipe(name: str) -> RunConfig:
    """The recipe called ``name``; raises UserError that names the nearest one."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe '{name}'; {nearest(name, RECIPES)}")
    return RECIPES[name]()
