"""Shards that others made, by what the user names: a folder, a pattern, or a list of any of three programs."""

import glob
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import braceexpand

from data_tools.errors import ShardError, reported
from data_tools.index import INDEX_NAME, LARGEST_INDEX, TAR_NAME

MOST_SHARDS = 1_000_000
OURS = {"fingerprint", "class_names", "image_shape"}  # only our index has these keys
# What a split is called in names of files and folders, and here.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "eval", "dev"), "validation")


class Found(NamedTuple):
    """Tars without an index of ours: their folder, and their paths below it by split."""

    root: Path
    splits: Mapping[str, Sequence[str]]


def find_shards(location: str) -> Found | None:
    """Return the tars that a local location names; None if they have an index of ours, or it names something else.

    Args:
        location: a folder, also with tars in folders below it; a pattern with braces or wildcards; a text file of
            paths; timm's ``_info.json`` or wids' JSON.

    Raises:
        ShardError: a list or pattern names files that are not there.
    """
    text = location.removeprefix("file://")
    path = Path(text).expanduser()
    if "://" in text or text.startswith("pipe:"):
        return None
    if path.name == INDEX_NAME or (path.is_dir() and (path / INDEX_NAME).is_file()):
        listed = path if path.name == INDEX_NAME else path / INDEX_NAME
        return _listed(listed) if listed.is_file() else None
    if path.is_dir():
        return _by_names(path, sorted(str(tar.relative_to(path)) for tar in path.rglob("*.tar") if tar.is_file()))
    if path.suffix in (".json", ".txt") and path.is_file():
        return _listed(path)
    if not text.endswith(".tar"):
        return None
    paths = _expanded(str(path))
    listed = _common_folder(paths) / INDEX_NAME
    return None if listed.is_file() and _listed(listed) is None else _by_paths(paths)


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for.

    Raises:
        ShardError: its braces are not in order, or it stands for more than ``MOST_SHARDS`` names.
    """
    # Before any is made: a pattern of a few bytes can stand for more names than there is memory.
    if _most_names(pattern) > MOST_SHARDS:
        raise ShardError(f"{pattern} names more than {MOST_SHARDS:,} shards")
    with reported(pattern, ValueError, fix="; expected FOLDER/X-{000000..000004}.tar"):
        return list(braceexpand.braceexpand(pattern))


def _most_names(pattern: str) -> int:
    """Return a bound on the names that a pattern stands for: the product of its braces, nested ones too."""
    count = 1
    while innermost := re.search(r"\{([^{}]*)\}", pattern):
        ends = re.match(r"(-?\d+)\.\.(-?\d+)", innermost[1])
        letters = 52 if ".." in innermost[1] else innermost[1].count(",") + 1
        count *= abs(int(ends[2]) - int(ends[1])) + 1 if ends else letters
        pattern = pattern[: innermost.start()] + pattern[innermost.end() :]
    return count


def _expanded(pattern: str) -> list[str]:
    """Return the files that braces and wildcards stand for, in the pattern's order; of a wildcard, by name."""
    found = []
    for name in expand_braces(pattern):
        files = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        if not all(map(os.path.isfile, files)) or not files:
            raise ShardError(f"{pattern} names {name}, which is not there" if name != pattern else f"no file {name}")
        found += files
    return found


def _listed(path: Path) -> Found | None:
    """Read a list of tars: lines of a text, timm's index or wids'; None if it is an index of ours, or meant to be."""
    with reported(f"cannot read {path}"):
        if path.stat().st_size > LARGEST_INDEX:
            raise ShardError(f"{path} is larger than a list of shards may be ({LARGEST_INDEX:,} bytes)")
        text = path.read_text(errors="replace")
    if path.suffix == ".txt":
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if remote := [line for line in lines if "://" in line]:
            raise ShardError(f"{path} lists {remote[0]}: copy these shards to a folder, and name that one")
        return _by_paths([str(path.parent / line) for line in lines])
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.keys() & OURS:
        return None
    if isinstance(content.get("shardlist"), list):  # wids
        return _by_names(path.parent, [str(_entry(path, entry, "url", str)) for entry in content["shardlist"]])
    splits = content.get("splits")
    named: dict[str, list[str]] = {}
    for name, split in splits.items() if isinstance(splits, dict) else ():
        named.setdefault(SPLITS.get(str(name), str(name)), []).extend(map(str, _entry(path, split, "filenames", list)))
    return _checked(Found(path.parent, named)) if named else None


def _entry(path: Path, content: Any, key: str, kind: type) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get(key), kind):
        raise ShardError(f"{path} is no list of shards: it has no {key}")
    return content[key]


def _by_paths(paths: Sequence[str]) -> Found | None:
    root = _common_folder(paths)
    return _by_names(root, [os.path.relpath(path, root) for path in paths])


def _common_folder(paths: Sequence[str]) -> Path:
    with reported(", ".join(paths[:2]), ValueError):  # an absolute and a relative one
        return Path(os.path.commonpath([os.path.dirname(path) or "." for path in paths] or ["."]))


def _by_names(root: Path, names: Sequence[str]) -> Found | None:
    """Divide tars by the split in their names; those that name none are of train."""
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(split_of(name), []).append(name)
    return _checked(Found(root, splits)) if splits else None


def split_of(name: str) -> str:
    """Return the split that the last such word in the path of a file means; train if there is none."""
    words = [SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS]
    return words[-1] if words else "train"


def _checked(found: Found) -> Found:
    """Refuse what is missing, and what is no file in or below the folder: lists may come from somebody else."""
    for name in itertools.chain.from_iterable(found.splits.values()):
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ShardError(f"{name} is not in {found.root} or below it, as all shards of a list must be")
        if not re.fullmatch(TAR_NAME, name):
            raise ShardError(f"cannot use {found.root / name}: names of tars have letters, digits and _.+=@- only")
        if not (found.root / name).is_file():
            raise ShardError(f"missing shard {found.root / name}")
    return found
