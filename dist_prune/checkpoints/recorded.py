"""Recipe and data of a run folder, checked before use: the folder may be damaged or untrusted."""

from __future__ import annotations

import json

from dist_prune.config import RunConfig, validated
from dist_prune.errors import UserError
from dist_prune.monitor.records import RunFolder


def config_of(run: RunFolder) -> RunConfig:
    """The recipe of a run folder; settings that are newer than the run have their defaults.

    Raises UserError where there is none.
    """
    try:
        return validated(RunConfig, json.loads(run.config.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        raise UserError(f"{run.config} is not the config.json of a run: {error}") from error


def data_of(run: RunFolder) -> str:
    """Where a run's data were, for ``open_data``.

    Raises UserError where only a command would bring them: none is run but those that the user types.
    """
    try:
        data = config_of(run).data
    except UserError as error:
        raise UserError(f"{error}; name the data with --data") from error
    if data.startswith("pipe:"):
        raise UserError(f"{run.path} read its data by a command; if you trust it, give it yourself: --data '{data}'")
    return data
