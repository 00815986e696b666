"""The data that the user names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools import ShardError
from data_tools.open_shards import Labelling, open_shards, sketch_shards
from dist_prune.config import CacheConfig, DataConfig
from dist_prune.data.loader import ImageData
from dist_prune.data.locate import locate
from dist_prune.data.stream import StreamData


def open_data(
    data: DataConfig | str, *, eval_data: str | None = None, cache: CacheConfig | None = None, **options: Any
) -> ImageData:
    """Open a data set in shards.

    Args:
        data: the recipe's section, or only the location: a name under ``$DIST_PRUNE_DATA`` (default
            ``~/.cache/dist_prune``), a folder of shards, its ``_info.json``, tars as
            ``FOLDER/X-train-{000000..000004}.tar``, or any of these three as a URL or a ``pipe:`` command; locally
            also wildcards and lists (``find_shards``). ``digits`` is made under the first on first use.
        eval_data: likewise, of the images to evaluate on, if they are elsewhere.
        cache: where shards of URLs are kept, and how much room they may take.
        options: fields of ``ImageData``: seed, workers, image_size and so on.

    Raises:
        ShardError: nothing there, or missing or damaged shards, or ``eval_data`` has other classes.
    """
    chosen = DataConfig(location=data) if isinstance(data, str) else data
    cache = cache or CacheConfig()
    access: dict[str, Any] = {
        "labelling": Labelling(chosen.label, chosen.label_field, chosen.classes),
        "cache_dir": cache.folder,
        "cache_bytes": int(cache.gigabytes * 1e9),
        "timeout": cache.timeout,
        "retries": cache.retries,
    }
    places = [locate(place) for place in (chosen.location, eval_data) if place]
    if chosen.order == "stream":
        return _open_stream(chosen, places, access, options)
    (store, index), *evaluated = (
        open_shards(place, may_be_said=number > 0, **access) for number, place in enumerate(places)
    )
    options.setdefault("decoded_bytes", int(cache.decoded_gigabytes * 1e9))
    options["eval_data"] = next(((store, of.to_evaluate().read_as(index)) for store, of in evaluated), None)
    opened = ImageData(index, store, **options)
    for found in (index, *(of for _, of in evaluated)):
        if isinstance(found.root, Path) and opened.bad_data == "error":
            found.check_files()
    return opened


def _open_stream(
    chosen: DataConfig, places: Sequence[str], access: Mapping[str, Any], options: dict[str, Any]
) -> StreamData:
    (store, index, names), *evaluated = (
        sketch_shards(place, may_be_said=number > 0, **access) for number, place in enumerate(places)
    )
    names = dict(names)
    for held, of, tars in evaluated:
        numbered = of.to_evaluate().read_as(index)
        options["eval_data"] = held, numbered
        (names["test"],) = (
            tars[name] for name, split in of.splits.items() if split.filenames == numbered.split("test").filenames
        )
    samples = chosen.samples
    if samples is None:
        if index.split("train").filenames != tuple(names["train"]):
            raise ShardError(f"{chosen.location} has no index that counts its images: set data.samples, or order=exact")
        samples = index.split("train").num_samples
    return StreamData(index, store, **options, names=names, samples=samples, shuffle=chosen.shuffle)
