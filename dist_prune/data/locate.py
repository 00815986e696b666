"""The place of a data set by what the user calls it; the embedded data set is made on first use."""

import os
import shutil
from pathlib import Path

from filelock import FileLock

from data_tools import SOURCES, ShardError, make_shards, read_index
from data_tools.errors import RawShardsError, reported, suggestion
from data_tools.index import INDEX_NAME
from data_tools.remote import PIPE, is_plain
from data_tools.sources.base import data_home
from dist_prune.files import temporary_beside

EMBEDDED = "digits"


def names_files(location: str) -> bool:
    """Return False for a command, and for a URL of a protocol that may run one."""
    return not location.startswith(PIPE) and "::" not in location and ("://" not in location or is_plain(location))


def absolute(location: str) -> str:
    """Return a location that means the same from every folder; names, URLs and commands stay as they are."""
    if "://" in location or location.startswith("pipe:"):
        return location
    found = locate(location)
    # A name refers to a folder below the data home, which may move.
    return location if found != location else os.path.abspath(location)


def locate(location: str) -> str:
    """Return the location of the data set of this name, if it is a name."""
    home = data_home()
    is_name = os.path.basename(location) == location and not location.endswith(".tar")
    if location == EMBEDDED:
        _make_embedded(home / EMBEDDED)
    if is_name and (home / location / INDEX_NAME).is_file():
        return str(home / location)
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


def _make_embedded(folder: Path) -> None:
    """Make the embedded data set if it is missing, or if an earlier version made it as raw shards."""
    advice = "; set DIST_PRUNE_DATA to a folder that you may write to"
    with reported(f"cannot make {folder}", (OSError, NotImplementedError), fix=advice):
        # Several processes may come here at once: the first one moves old shards away, all may make new ones.
        if _is_raw(folder):
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if _is_raw(folder):
                    old = temporary_beside(folder)
                    folder.rename(old)
                    shutil.rmtree(old)
        if not (folder / INDEX_NAME).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            make_shards(EMBEDDED, None, folder)


def _is_raw(folder: Path) -> bool:
    try:
        read_index(folder)
    except RawShardsError:
        return True
    except ShardError:  # missing, or damaged, which its user reports
        return False
    return False
