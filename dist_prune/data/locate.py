"""Find the data that the user names; the embedded data set is made on first use."""

import os
from pathlib import Path

from data_tools import SOURCES, ShardError, make_shards, open_store
from data_tools.errors import suggestion
from data_tools.index import INDEX_NAME
from data_tools.sources.base import data_home
from dist_prune.config import AugmentConfig, CacheConfig
from dist_prune.data.loader import ImageData
from dist_prune.data.transforms import output_size

EMBEDDED = "digits"


def open_data(
    location: str,
    *,
    seed: int = 1,
    workers: int = 1,
    image_size: int | None = None,
    augment: AugmentConfig | None = None,
    channels_last: bool = False,
    bad_data: str = "error",
    cache: CacheConfig | None = None,
) -> ImageData:
    """Open a data set in shards.

    Args:
        location: a name under ``$DIST_PRUNE_DATA`` (default ``~/.cache/dist_prune``), a folder of
            shards, its ``_info.json``, tars as ``FOLDER/X-train-{000000..000004}.tar``, or any of these
            three as a URL or a ``pipe:`` command. ``digits`` is made under the first on first use.
        seed: of order and augmentation, from 0 up.
        workers: reading processes of each rank.
        image_size: side of the (then square) images in pixels; None keeps theirs.
        augment: augmentation of training images; none by default.
        channels_last: memory format of the batches.
        bad_data: ``error``, or ``skip`` to skip samples that cannot be read.
        cache: where shards of URLs are kept, and how much room they may take.

    Raises:
        ShardError: nothing there, or missing or damaged shards.
    """
    if seed < 0 or workers < 0:
        raise ShardError(f"seed ({seed}) and workers ({workers}) must not be negative")
    cache = cache or CacheConfig()
    store = open_store(_find(location), cache.folder, int(cache.gigabytes * 1e9), cache.timeout, cache.retries)
    index = store.read_index()
    if isinstance(index.root, Path) and bad_data == "error":
        index.check_files()
    output_size(index, image_size)
    return ImageData(index, store, seed, workers, image_size, augment or AugmentConfig(), channels_last, bad_data)


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
        return str(_make_embedded(home))
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


def _make_embedded(home: Path) -> Path:
    """Make the embedded data set; several processes may do so at once."""
    folder = home / EMBEDDED
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(
            f"cannot make {folder}: {error.strerror}; set DIST_PRUNE_DATA to a folder that you may write to"
        ) from error
    make_shards(EMBEDDED, None, folder)
    return folder
