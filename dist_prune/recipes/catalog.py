"""How recipes are named: a function that returns a RunConfig, and variants of it that differ in some fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dist_prune.config import LrConfig, RunConfig
from dist_prune.config.schedules import Schedule, Steps

Recipe = Callable[[], RunConfig]
COMMAND = "deepspeed launch/train.py --ds_config ds_configs/{ds_config}.json --recipe {name}"
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
            config = RunConfig.model_validate({**base().model_dump(), **changes, "name": name})
            return config.model_copy(update={"name": name})

        recipe.__name__ = recipe.__qualname__ = name
        command = COMMAND.format(name=name, ds_config="zero2_bf16")
        recipe.__doc__ = f"{what}\n\n    {command}\n\n    Time on one GPU: not measured.\n    "
        return self.add(recipe)

    def with_short(self, base: Recipe, name: str, what: str, **changes: Any) -> Recipe:
        """As ``variant``; and once more as ``NAME_short``, which 2 CPU cores finish within an hour."""
        full = self.variant(base, name, what, **changes)

        def recipe() -> RunConfig:
            return short(full()).model_copy(update={"name": f"{name}_short"})

        recipe.__name__ = recipe.__qualname__ = f"{name}_short"
        recipe.__doc__ = f"Short version of {name}: a ResNet-20 for {_SHORT_EPOCHS} epochs.\n\n    {what}"
        self.add(recipe)
        return full


def short(config: RunConfig) -> RunConfig:
    """The recipe for a CPU: ResNet-20, few epochs of one-cycle, loss weights at the same shares of the run."""
    share = _SHORT_EPOCHS / config.epochs
    is_large = config.image_size is not None and config.image_size > 64
    changes: dict[str, Any] = {
        "model": "resnet18" if is_large else "resnet20",
        "image_size": 64 if is_large else config.image_size,
        "epochs": _SHORT_EPOCHS,
        "global_batch_size": 256,
        "lr": 0.3,
        "lr_schedule": LrConfig(kind="one_cycle"),
        "nesterov": True,
        "polarization": _sooner(config.polarization, share),
        "activation": _sooner(config.activation, share),
    }
    return config.model_copy(update=changes)


def _sooner(schedule: Schedule | None, share: float) -> Schedule | None:
    if isinstance(schedule, Steps):
        return Steps(values=tuple((epoch * share, value) for epoch, value in schedule.values))
    return schedule
