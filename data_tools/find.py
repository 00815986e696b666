"""Shards that others made, by what the user names: a folder, a pattern, or a list of any of three programs."""

import glob
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import braceexpand

from data_tools.errors import ShardError, reported
from data_tools.index import INDEX_NAME

MOST_SHARDS = 1_000_000
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
        return _listed(path if path.name == INDEX_NAME else path / INDEX_NAME)
    if path.is_dir():
        return _by_names(path, sorted(str(tar.relative_to(path)) for tar in path.rglob("*.tar") if tar.is_file()))
    if path.suffix in (".json", ".txt") and path.is_file():
        return _listed(path)
    if not text.endswith(".tar"):
        return None
    paths = _expanded(str(path))
    root = Path(os.path.commonpath([os.path.dirname(p) or "." for p in paths]))
    listed = root / INDEX_NAME
    if listed.is_file() and _listed(listed) is None:
        return None
    return _by_names(root, [os.path.relpath(p, root) for p in paths])


def _expanded(pattern: str) -> list[str]:
    if re.search(r"[*?\[]", pattern):
        found = sorted(glob.glob(pattern, recursive=True))
    else:
        with reported(pattern, ValueError, fix="; expected FOLDER/X-{000000..000004}.tar"):
            found = list(itertools.islice(braceexpand.braceexpand(pattern), MOST_SHARDS))
        missing = [path for path in found if not os.path.isfile(path)]
        if missing:
            raise ShardError(f"{pattern} names {missing[0]}, which is not there")
    if not found:
        raise ShardError(f"{pattern} names no file")
    return found


def _listed(path: Path) -> Found | None:
    """Read a list of tars: lines of a text, timm's index or wids'; None if it is an index of ours."""
    with reported(f"cannot read {path}"):
        text = path.read_text(errors="replace")
    if path.suffix == ".txt":
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if remote := [line for line in lines if "://" in line]:
            raise ShardError(f"{path} lists {remote[0]}: copy these shards to a folder, and name that one")
        return _by_names(path.parent, lines)
    with reported(f"{path} is no list of shards", (ValueError, RecursionError)):
        content = json.loads(text)
    splits = content.get("splits") if isinstance(content, dict) else None
    if isinstance(content, dict) and isinstance(content.get("shardlist"), list):  # wids
        return _by_names(path.parent, [str(entry.get("url")) for entry in content["shardlist"]])
    timm = isinstance(splits, dict) and "class_names" not in content and "version" not in content
    if not timm:
        return None
    assert isinstance(splits, dict)
    named: dict[str, list[str]] = {}
    for name, split in splits.items():
        files = split.get("filenames") if isinstance(split, dict) else None
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise ShardError(f"{path} is no list of shards: its split {name!r} has no filenames")
        named.setdefault(SPLITS.get(name, name), []).extend(files)
    return Found(path.parent, named)


def _by_names(root: Path, names: Sequence[str]) -> Found | None:
    """Divide tars by the split in their names; those that name none are of train."""
    splits: dict[str, list[str]] = {}
    for name in names:
        words = [SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS]
        splits.setdefault(words[-1] if words else "train", []).append(name)
    return Found(root, splits) if splits else None
