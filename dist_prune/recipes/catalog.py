"""Catalog of recipes: functions that return a RunConfig, and variants that differ in some fields."""

import math
from collections.abc import Callable
from typing import Any

from dist_prune.config import GatesConfig, LrConfig, RunConfig
from dist_prune.config.schedules import Ramp, Steps, side_at
from dist_prune.errors import UserError, nearest

Recipe = Callable[[], RunConfig]
_COMMAND = "deepspeed launch/train.py --ds_config ds_configs/zero2_bf16.json --recipe {}"
# Changes that make a recipe its dense baseline: without the fields that only gates read.
DENSE: dict[str, Any] = {"method": "dense", "gates": GatesConfig(), "target_macs": None}
_SHORT_EPOCHS = 10


RECIPES: dict[str, Recipe] = {}


def recipe(name: str) -> RunConfig:
    """Return the recipe called ``name``; raises UserError that names the nearest one."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe '{name}'; {nearest(name, RECIPES)}")
    return RECIPES[name]()


def add(named: Recipe) -> Recipe:
    """Register a function under its own name (a decorator)."""
    RECIPES[named.__name__] = named
    return named


def variant(base: Recipe, name: str, what: str, **changes: Any) -> Recipe:
    """Register ``base`` with some fields changed. what: the first line of its docstring."""
    command = _COMMAND.format(name)
    doc = f"{what}\n\n    {command}\n\n    Time on one GPU: not measured.\n    "
    return _add_as(name, doc, lambda: RunConfig.model_validate({**base().model_dump(), **changes, "name": name}))


def with_short(base: Recipe, name: str, what: str, **changes: Any) -> None:
    """Register a ``variant``, and a short version ``NAME_short``, which 2 CPU cores finish within an hour."""
    full, name = variant(base, name, what, **changes), f"{name}_short"
    doc = f"Short version of {full.__name__}: a ResNet-20 for {_SHORT_EPOCHS} epochs.\n\n    {what}"
    _add_as(name, doc, lambda: short(full()).model_copy(update={"name": name}))


def _add_as(name: str, doc: str, function: Recipe) -> Recipe:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return add(function)


def short(config: RunConfig) -> RunConfig:
    """Return the recipe for a CPU: ResNet-20, few epochs of one-cycle, events at the same fractions of the run."""
    share, at = _SHORT_EPOCHS / config.epochs, config.freeze.collapse_epoch
    sides = config.image_size
    is_large = (side_at(sides, math.inf) or 0) > 64
    changes: dict[str, Any] = {
        "model": "resnet18" if is_large else "resnet20",
        "image_size": 64 if is_large else sides.scaled(share) if isinstance(sides, Ramp | Steps) else sides,
        "eval_size": None if is_large else config.eval_size,
        "epochs": _SHORT_EPOCHS,
        "global_batch_size": 256,
        "lr": 0.3,
        "lr_schedule": LrConfig(kind="one_cycle"),
        "nesterov": True,
        # Everything that the recipe counts in epochs comes at the same fraction of the run.
        "polarization": config.polarization and config.polarization.scaled(share),
        "activation": config.activation.scaled(share),
        "gates": config.gates.model_copy(update={"temperature": config.gates.temperature.scaled(share)}),
        "freeze": config.freeze.model_copy(update={"collapse_epoch": at and min(_SHORT_EPOCHS, math.ceil(at * share))}),
    }
    return RunConfig.model_validate({**config.model_dump(), **changes})
