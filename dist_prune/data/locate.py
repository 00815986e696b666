"""Find the data that the user names; the embedded data set is made on first use."""

import os
from pathlib import Path
from typing import Any

from data_tools import SOURCES, ShardError, make_shards, open_store
from data_tools.errors import reported, suggestion
from data_tools.index import INDEX_NAME
from data_tools.sources.base import data_home
from dist_prune.config import CacheConfig
from dist_prune.data.loader import ImageData

EMBEDDED = "digits"


def open_data(location: str, *, cache: CacheConfig | None = None, **options: Any) -> ImageData:
    """Open a data set in shards.

    Args:
        location: a name under ``$DIST_PRUNE_DATA`` (default ``~/.cache/dist_prune``), a folder of
            shards, its ``_info.json``, tars as ``FOLDER/X-train-{000000..000004}.tar``, or any of these
            three as a URL or a ``pipe:`` command. ``digits`` is made under the first on first use.
        cache: where shards of URLs are kept, and how much room they may take.
        options: fields of ``ImageData``: seed, workers, image_size, augment, channels_last, bad_data.

    Raises:
        ShardError: nothing there, or missing or damaged shards.
    """
    cache = cache or CacheConfig()
    store = open_store(_find(location), cache.folder, int(cache.gigabytes * 1e9), cache.timeout, cache.retries)
    data = ImageData(store.read_index(), store, **options)
    if isinstance(data.index.root, Path) and data.bad_data == "error":
        data.index.check_files()
    return data


def absolute(location: str) -> str:
    """Return a location that means the same from every folder; names, URLs and commands stay as they are."""
    if "://" in location or location.startswith("pipe:"):
        return location
    found = _find(location)
    # A name refers to a folder below the data home, which may move.
    return location if found != location else os.path.abspath(location)


def _find(location: str) -> str:
    """Return the location of the data set of this name, if it is a name."""
    home = data_home()
    is_name = os.path.basename(location) == location and not location.endswith(".tar")
    if is_name and (home / location / INDEX_NAME).is_file():
        return str(home / location)
    if location == EMBEDDED:
        # Several processes may do so at once.
        with reported(f"cannot make {home / EMBEDDED}", fix="; set DIST_PRUNE_DATA to a folder that you may write to"):
            (home / EMBEDDED).mkdir(parents=True, exist_ok=True)
        make_shards(EMBEDDED, None, home / EMBEDDED)
        return str(home / EMBEDDED)
    datasets = [name for name, source in SOURCES.items() if source.is_dataset]
    if location in datasets and not (Path(location) / INDEX_NAME).is_file():
        raise ShardError(
            f"dataset {location!r} not found; create it with dist-prune shards make {location} --out {home / location}"
        )
    if not is_name or Path(location).exists():
        return location
    known = sorted({*datasets, *(index.parent.name for index in home.glob(f"*/{INDEX_NAME}"))})
    raise ShardError(
        f"no dataset {location!r}{suggestion(location, known)}: "
        f"expected a folder of shards or one of {', '.join(known)}"
    )
