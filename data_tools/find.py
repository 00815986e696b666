"""Shards by what the user names: a folder, a pattern, a URL, a command, or a list of any of three programs."""

import contextlib
import glob
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.errors import ShardError, reported
from data_tools.index import INDEX_NAME, LARGEST_INDEX, TAR_NAME, ShardIndex
from data_tools.patterns import common_folder, expand_braces
from data_tools.remote import NotThere, is_plain
from data_tools.store import ShardSpec, ShardStore, open_store

OURS = {"fingerprint", "class_names", "image_shape"}  # only our index has these keys
# What a split is called in names of files and folders, and here.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "eval", "dev"), "validation")


Splits = Mapping[str, Sequence[str]]  # names of tars


@dataclass(frozen=True)
class Found:
    """Access to shards, and the index of ours that they have, or else the names of their tars by split."""

    store: ShardStore
    index: ShardIndex | None = None
    splits: Splits = field(default_factory=dict)


def find_shards(location: str, **options: Any) -> Found:
    """Find the shards that a location names.

    Args:
        location: as for ``open_store``; or a local folder with tars in folders below it, a local pattern with
            wildcards, a text file of paths or URLs, timm's ``_info.json`` or wids' JSON.
        options: of ``open_store``.

    Raises:
        ShardError: nothing there, or names of files that are not there.
    """
    text = location.removeprefix("file://")
    path = Path(text).expanduser()
    if "://" in text or text.startswith("pipe:"):
        return _remote(open_store(location, **options))
    if path.name == INDEX_NAME or (path.is_dir() and (path / INDEX_NAME).is_file()):
        listed = path if path.name == INDEX_NAME else path / INDEX_NAME
        found = _listed(listed, options) if listed.is_file() else None
    elif path.is_dir():
        found = _local(path, sorted(str(tar.relative_to(path)) for tar in path.rglob("*.tar") if tar.is_file()))
    elif path.suffix in (".json", ".txt") and path.is_file():
        found = _listed(path, options)
    elif text.endswith(".tar"):
        found = _by_pattern(str(path), options)
    else:
        found = None
    if found:
        return found
    if path.suffix == ".json" and path.name != INDEX_NAME and path.is_file():
        raise ShardError(f"{path} is no list of shards; an index lies beside its shards and is called {INDEX_NAME}")
    store = open_store(location, **options)
    return Found(store, store.read_index())


def _by_pattern(pattern: str, options: Mapping[str, Any]) -> Found | None:
    paths = _expanded(pattern)
    folder = _common_folder(paths)
    if not (folder / INDEX_NAME).is_file() or _listed(folder / INDEX_NAME, options):
        return _by_paths(paths)
    names = frozenset(os.path.relpath(path, folder) for path in paths)
    store = ShardStore(ShardSpec(pattern, f"{folder}/", names=names))
    return Found(store, store.read_index())


def _remote(store: ShardStore) -> Found:
    """Find the tars at a URL or of a command: those that it names, that an index there names, or that a folder has."""
    try:
        content = store.index_content()
        splits = _splits_of(content, str(store.spec))
    except NotThere:
        names = sorted(store.spec.names or _listed_at(store))
        if not names:
            raise
        return _checked(Found(store, splits=_by_split(names)))
    if splits is None:
        return Found(store, store.parse_index(content))
    # The user has named some of the tars that a list of others names.
    return _checked(Found(store, splits=_by_split(sorted(store.spec.names)) if store.spec.names else splits))


def _listed_at(store: ShardStore) -> list[str]:
    with contextlib.suppress(ShardError):
        return store.list_tars()
    return []


def _expanded(pattern: str) -> list[str]:
    """Return the files that braces and wildcards stand for, in the pattern's order; of a wildcard, by name."""
    found = []
    for name in expand_braces(pattern):
        files = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        if not all(map(os.path.isfile, files)) or not files:
            raise ShardError(f"{pattern} names {name}, which is not there" if name != pattern else f"no file {name}")
        found += files
    return found


def _listed(path: Path, options: Mapping[str, Any]) -> Found | None:
    """Read a list of tars: lines of a text, timm's index or wids'; None if it is an index of ours, or meant to be."""
    with reported(f"cannot read {path}"):
        if path.stat().st_size > LARGEST_INDEX:
            raise ShardError(f"{path} is larger than a list of shards may be ({LARGEST_INDEX:,} bytes)")
        content = path.read_bytes()
    if path.suffix == ".txt":
        lines = [line.strip() for line in content.decode("utf-8-sig", errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise ShardError(f"{path} lists no shards")
        if any("://" in line for line in lines):
            return _by_urls(path, lines, options)
        return _by_paths([str(path.parent / line) for line in lines])
    splits = _splits_of(content, str(path))
    return _checked(Found(_store_of(path.parent), splits=splits)) if splits else None


def _splits_of(content: bytes, place: str) -> Splits | None:
    """Return the names of tars by split that timm's index or wids' lists; None if it is an index of ours."""
    try:
        listed = json.loads(content)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, dict) or listed.keys() & OURS:
        return None
    if isinstance(listed.get("shardlist"), list):  # wids
        return _by_split([str(_entry(place, entry, "url", str)) for entry in listed["shardlist"]])
    splits = listed.get("splits")
    named: dict[str, list[str]] = {}
    for name, split in splits.items() if isinstance(splits, dict) else ():
        named.setdefault(SPLITS.get(str(name), str(name)), []).extend(map(str, _entry(place, split, "filenames", list)))
    return named or None


def _entry(place: str, content: Any, key: str, kind: type) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise ShardError(f"{place} is no list of shards: it has no {key}")
    return content[key]


def _by_urls(path: Path, urls: Sequence[str], options: Mapping[str, Any]) -> Found:
    """Return the tars at these URLs, which lie in or below one folder."""
    first, *_ = urls
    if wrong := [url for url in urls if not is_plain(url)]:
        raise ShardError(f"{path} lists {wrong[0]}: expected plain URLs, such as https://... or s3://...")
    if wrong := [url for url in urls if "?" in url or url.split("/")[:3] != first.split("/")[:3]]:
        raise ShardError(f"{path} lists {wrong[0]} beside {first}: expected plain URLs of one server or bucket")
    folder = common_folder(urls)
    store = open_store(f"{folder}/", **options)
    return _checked(Found(store, splits=_by_split([url.removeprefix(f"{folder}/") for url in urls])))


def _by_paths(paths: Sequence[str]) -> Found | None:
    root = _common_folder(paths)
    return _local(root, [os.path.relpath(path, root) for path in paths])


def _common_folder(paths: Sequence[str]) -> Path:
    with reported(", ".join(paths[:2]), ValueError):  # an absolute and a relative one
        return Path(os.path.commonpath([os.path.dirname(path) or "." for path in paths] or ["."]))


def _local(root: Path, names: Sequence[str]) -> Found | None:
    return _checked(Found(_store_of(root), splits=_by_split(names))) if names else None


def _store_of(folder: Path) -> ShardStore:
    return ShardStore(ShardSpec(str(folder), f"{folder}/"))


def _by_split(names: Sequence[str]) -> Splits:
    """Divide tars by the split in their names; those that name none are of train."""
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(split_of(name), []).append(name)
    return splits


def split_of(name: str) -> str:
    """Return the split that the last such word in the path of a file means; train if there is none."""
    words = [SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS]
    return words[-1] if words else "train"


def _checked(found: Found) -> Found:
    """Refuse what is missing, and what is no file in or below the folder: lists may come from somebody else."""
    root = found.store.spec.root
    for name in itertools.chain.from_iterable(found.splits.values()):
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ShardError(f"{name} is not in {root} or below it, as all shards of a list must be")
        if not re.fullmatch(TAR_NAME, name):
            raise ShardError(f"cannot use {root}/{name}: names of tars have letters, digits and _.+=@- only")
        if found.store.spec.transport == "folder" and not Path(root, name).is_file():
            raise ShardError(f"missing shard {root}/{name}")
    return found
