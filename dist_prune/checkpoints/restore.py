"""What a run folder has for a continuation: recipe and data (perhaps untrusted), and the newest whole checkpoint."""

import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from dist_prune import distributed
from dist_prune.checkpoints.format import load_newest
from dist_prune.checkpoints.train_state import TrainState
from dist_prune.config import RESUMABLE_FIELDS, RunConfig, validated
from dist_prune.data import ImageData
from dist_prune.errors import UserError, one_line
from dist_prune.monitor.records import RunFolder
from dist_prune.runtime.consistency import flatten

_TRUSTED_PROTOCOLS = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az")


def find_checkpoint(folder: RunFolder, config: RunConfig, data: ImageData) -> TrainState | None:
    """Return the state of rank 0's newest whole checkpoint, on every rank; None where there is none yet.

    Raises UserError on every rank if it is of a run with another recipe or with other shards, or of another format.
    """
    # Only rank 0 reads: ranks on other nodes may see an older state of a network file system.
    state = problem = None
    if distributed.is_main():
        try:
            state, damaged = load_newest(folder.checkpoints)
            for line in damaged:
                print(f"{line}; passing over it", file=sys.stderr)
            if state:
                problem = other_recipe(folder, config) or other_data(folder, config, state.data, data)
        except UserError as error:
            problem = str(error)
    state, problem = distributed.broadcast_object((state, problem))
    if problem:
        raise UserError(problem)
    return state


def config_of(run: RunFolder) -> RunConfig:
    """Return the recipe of a run folder, or raise UserError; settings newer than the run have their defaults."""
    try:
        return validated(RunConfig, json.loads(run.config.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        raise UserError(f"{run.config} is not the config.json of a run: {error}") from error


def data_of(run: RunFolder) -> str:
    """Return where a run's data were.

    Raises UserError for a command, and for a URL of a protocol that may run one: the run folder may be someone else's,
    and only what the user types is trusted.
    """
    try:
        data = config_of(run).data
    except UserError as error:
        raise UserError(f"{error}; name the data with --data") from error
    # fsspec's chains (a::b) and its protocols that refer to others render templates and open what these name.
    if data.startswith("pipe:") or "::" in data or ("://" in data and data.split("://")[0] not in _TRUSTED_PROTOCOLS):
        raise UserError(
            f"{run.path} read its data by a command or from a chain of URLs; if you trust it, give it yourself: "
            f"--data {shlex.quote(one_line(data))}"
        )
    return data


def other_recipe(folder: RunFolder, config: RunConfig) -> str | None:
    """Return one line about the first field in which ``config`` differs from the run in ``folder``; None if none does.

    Fields of ``RESUMABLE_FIELDS`` may differ.
    """
    if not folder.config.exists():
        return None
    try:
        stored = config_of(folder)
    except UserError as error:
        return str(error)
    # Dotted names: a difference in one nested field must not print two whole sections.
    before, now = (flatten(of.model_dump(mode="json", exclude=set(RESUMABLE_FIELDS))) for of in (stored, config))
    for key in [*now, *(before.keys() - now.keys())]:
        if before.get(key) != now.get(key):
            was, is_now = before.get(key, "nothing"), now.get(key, "nothing")
            return f"{folder.path} was started with {key}={was}, not {is_now}; resume it with the same recipe"
    return None


def other_data(folder: RunFolder, config: RunConfig, before: Mapping[str, Any], data: ImageData) -> str | None:
    """Return one line if the shards of the run in ``folder`` are not those of ``data``; None if they are.

    Shards are the same if their fingerprint and their order are, wherever they lie now.
    """
    # With other shards the rest of the epoch would repeat some images and miss others.
    now = data.identity()
    if before == now:
        return None
    return (
        f"{folder.path} was started with other shards than {config.data} has now "
        f"({_counted(before)} then, {_counted(now)} now); resume it with the shards that it was started with"
    )


def _counted(identity: Mapping[str, Any]) -> str:
    """Return the numbers of images and shards of each split, and the first digits of the fingerprint."""
    counts = [
        f"{sum(lengths)} {split} images in {len(lengths)}" for split, lengths in identity["shard_lengths"].items()
    ]
    return f"{' and '.join(counts)} shards, fingerprint {identity['fingerprint'][:8]}"
