"""Catalog of recipes: functions that return a RunConfig, and variants that differ in some fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dist_prune.config import GatesConfig, LrConfig, RunConfig

Recipe = Callable[[], RunConfig]
COMMAND = "deepspeed launch/train.py --ds_config ds_configs/{ds_config}.json --recipe {name}"
# Changes that make a recipe its dense baseline: without the fields that only gates read.
DENSE: dict[str, Any] = {"method": "dense", "gates": GatesConfig(), "target_macs": None}
_SHORT_EPOCHS = 10


class Catalog(dict[str, Recipe]):
    """Recipes by name."""

    def add(self, recipe: Recipe) -> Recipe:
        """Register a function under its own name (a decorator)."""
        self[recipe.__name__] = recipe
        return recipe

    def variant(self, base: Recipe, name: str, what: str, **changes: Any) -> Recipe:
        """Register ``base`` with some fields changed. what: the first line of its docstring."""

        def recipe() -> RunConfig:
            return RunConfig.model_validate({**base().model_dump(), **changes, "name": name})

        recipe.__name__ = recipe.__qualname__ = name
        command = COMMAND.format(name=name, ds_config="zero2_bf16")
        recipe.__doc__ = f"{what}\n\n    {command}\n\n    Time on one GPU: not measured.\n    "
        return self.add(recipe)

    def with_short(self, base: Recipe, name: str, what: str, **changes: Any) -> Recipe:
        """Register a ``variant``, and a short version ``NAME_short``, which 2 CPU cores finish within an hour."""
        full = self.variant(base, name, what, **changes)

        def recipe() -> RunConfig:
            return short(full()).model_copy(update={"name": f"{name}_short"})

        recipe.__name__ = recipe.__qualname__ = f"{name}_short"
        recipe.__doc__ = f"Short version of {name}: a ResNet-20 for {_SHORT_EPOCHS} epochs.\n\n    {what}"
        self.add(recipe)
        return full


def short(config: RunConfig) -> RunConfig:
    """Return the recipe for a CPU: ResNet-20, few epochs of one-cycle, events at the same fractions of the run."""
    share, at = _SHORT_EPOCHS / config.epochs, config.freeze.collapse_epoch
    is_large = config.image_size is not None and config.image_size > 64
    changes: dict[str, Any] = {
        "model": "resnet18" if is_large else "resnet20",
        "image_size": 64 if is_large else config.image_size,
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
