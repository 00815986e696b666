"""Data and method of a recipe, for training and for offline commands: no engine is imported here."""

from __future__ import annotations

from dist_prune.config import RunConfig
from dist_prune.data import ImageData, open_data
from dist_prune.errors import UserError, nearest
from dist_prune.methods import METHODS, Method, Task


def open_images(config: RunConfig) -> ImageData:
    """Open the recipe's data; each rank opens its own."""
    return open_data(
        config.data,
        seed=config.seed,
        workers=config.workers,
        image_size=config.image_size,
        augment=config.augment,
        channels_last=config.channels_last,
        bad_data=config.bad_data,
        cache=config.cache,
    )


def build_method(config: RunConfig, data: ImageData) -> tuple[Method, Task]:
    """Build the recipe's method and the task that it is given.

    Raises:
        UserError: no method has that name.
    """
    if config.method not in METHODS:
        raise UserError(f"unknown method '{config.method}'; {nearest(config.method, METHODS)}")
    task = Task(config, data.num_classes, data.input_shape)
    return METHODS[config.method](task), task
