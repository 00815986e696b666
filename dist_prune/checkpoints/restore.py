"""What a run folder has for a continuation: recipe and data (perhaps untrusted), and the newest whole checkpoint."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dist_prune import distributed
from dist_prune.checkpoints.format import load_newest
from dist_prune.checkpoints.train_state import Origin, TrainState
from dist_prune.config import RunConfig, is_resumable, override, validated
from dist_prune.data import ImageData
from dist_prune.data.locate import names_files
from dist_prune.errors import UserError, one_line
from dist_prune.files import read_regular
from dist_prune.monitor.records import RunFolder
from dist_prune.runtime.consistency import flatten

# Keys of the DeepSpeed JSON that may differ on resume: they change speed, memory or messages.
RESUMABLE_KEYS = frozenset({
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "train_batch_size",
    "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print", "wall_clock_breakdown",
    "memory_breakdown", "dump_state", "comms_logger", "flops_profiler", "aio", "disable_allgather",
})  # fmt: skip


def find_checkpoint(folder: RunFolder, config: RunConfig, origin: Origin, data: ImageData) -> TrainState | None:
    """Return the state of rank 0's newest whole checkpoint, on every rank; None where there is none yet.

    Raises UserError on every rank if it is of a run with another recipe, DeepSpeed config or other shards, or of
    another format, or if there are checkpoints of which none can be read.
    """
    # Only rank 0 reads: ranks on other nodes may see an older state of a network file system.
    state = problem = None
    if distributed.is_main():
        try:
            state, damaged = load_newest(folder.checkpoints)
            for line in damaged:
                print(f"{line}; passing over it", file=sys.stderr)
            if state:
                problem = other_recipe(folder, state.origin["recipe"], config)
                problem = problem or other_ds_config(folder, state.origin["ds_config"], origin["ds_config"])
                problem = problem or other_data(folder, config, state.data, data)
            if state and not problem:
                for line in _changes(state.origin, origin):
                    print(line, file=sys.stderr)
        except UserError as error:
            problem = str(error)
    state, problem = distributed.broadcast_object((state, problem))
    if problem:
        raise UserError(problem)
    if state is not None:
        state.origin = origin
    return state


def config_of(run: RunFolder) -> RunConfig:
    """Return the recipe of a run folder, or raise UserError; settings newer than the run have their defaults."""
    try:
        config = validated(RunConfig, json.loads(read_regular(run.config))["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        raise UserError(f"{run.config} is not the config.json of a run: {error}") from error
    # Somebody else's run folder must not choose where shards are written: only a cache that is there already is used.
    folder = config.cache.folder
    if folder and not any(Path(folder).glob("[0-9a-f]" * 64 + ".tar")):
        config = config.model_copy(update={"cache": config.cache.model_copy(update={"folder": None})})
    return config


def config_with_data(run: RunFolder, data: str | None = None, eval_data: str | None = None) -> RunConfig:
    """Return the recipe of a run folder, whose data may be opened; data, eval_data: where they are now, as typed.

    Raises UserError for a recorded command, and for a URL of a protocol that may run one: the run folder may be someone
    else's, and only what the user types is trusted.
    """
    try:
        config = config_of(run)
    except UserError as error:
        raise UserError(f"{error}; name the data with --data" if data is None else str(error)) from error
    recorded = {"--data": config.data.location if data is None else "", "--eval_data": eval_data or config.eval_data}
    for option, place in recorded.items():
        place = "" if place is None or place == eval_data else place
        if not names_files(place):
            raise UserError(
                f"{run.path} read its data by a command or from a chain of URLs; if you trust it, give it yourself: "
                f"{option} {shlex.quote(one_line(place))}"
            )
    typed = {"data.location": data, "eval_data": eval_data}
    settings = [f"{key}={json.dumps(place)}" for key, place in typed.items() if place]
    return override(config, ["allow_pipes=true", *settings])


def other_recipe(folder: RunFolder, before: Mapping[str, Any], config: RunConfig) -> str | None:
    """Return one line about the first field in which ``config`` differs from the recipe before; None if none does.

    Fields that change no result may differ.
    """
    try:
        stored = validated(RunConfig, before)
    except UserError as error:
        return f"the checkpoints in {folder.checkpoints} are not of a run of this program: {error}"
    was, now = (of.model_dump(mode="json") for of in (stored, config))
    return _first_difference(folder, was, now, is_resumable, "resume it with the same recipe")


def other_ds_config(folder: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return one line about the first key that changes the losses and differs; None if none does.

    Keys of ``RESUMABLE_KEYS`` may differ.
    """
    advice = "resume it with the same DeepSpeed config"
    return _first_difference(folder, before, now, lambda key: key.partition(".")[0] in RESUMABLE_KEYS, advice)


def _first_difference(
    folder: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any], may_differ: Callable[[str], bool], advice: str
) -> str | None:
    # Dotted names: a difference in one nested field must not print two whole sections.
    was, is_now = flatten(before), flatten(now)
    for key in [*is_now, *(was.keys() - is_now.keys())]:
        if was.get(key) != is_now.get(key) and not may_differ(key):
            values = was.get(key, "nothing"), is_now.get(key, "nothing")
            return f"{folder.path} was started with {key}={values[0]}, not {values[1]}; {advice}"
    return None


def _changes(before: Origin, now: Origin) -> Iterator[str]:
    """Yield a line about each change that a resume allows and that changes the losses a little."""
    if before["micro_batch"] != now["micro_batch"]:
        changed = f"micro-batch {now['micro_batch']} instead of {before['micro_batch']} so far"
        yield f"{changed}: batch norms average over it, so losses differ a little"
    for name in sorted(before["versions"].keys() | now["versions"].keys()):
        was, is_now = before["versions"].get(name), now["versions"].get(name)
        if was != is_now:
            yield f"{name} {is_now} instead of {was} so far: losses may differ a little"


def other_data(folder: RunFolder, config: RunConfig, before: Mapping[str, Any], data: ImageData) -> str | None:
    """Return one line if the shards of the run in ``folder`` are not those of ``data``; None if they are.

    Shards are the same if their fingerprint and their order are, wherever they lie now.
    """
    # With other shards the rest of the epoch would repeat some images and miss others.
    now = data.identity()
    if before == now:
        return None
    return (
        f"{folder.path} was started with other shards than {config.data.location} has now "
        f"({_counted(before)} then, {_counted(now)} now); resume it with the shards that it was started with"
    )


def _counted(identity: Mapping[str, Any]) -> str:
    """Return the numbers of images and shards of each split, and the first digits of the fingerprint."""
    counts = [
        f"{sum(lengths)} {split} images in {len(lengths)}" for split, lengths in identity["shard_lengths"].items()
    ]
    # Those of the images to evaluate on come second, if they lie elsewhere.
    fingerprints = " and ".join(one[:8] for one in identity["fingerprint"].split())
    return f"{' and '.join(counts)} shards, fingerprint {fingerprints}"
