"""Shards of any kind are opened here; the index of those that have none is made, once, and kept."""

import hashlib
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import joblib
from filelock import FileLock
from tqdm import tqdm

from data_tools.errors import ShardError, reported
from data_tools.find import Found, find_shards
from data_tools.index import INDEX_NAME, ShardIndex, parse_index
from data_tools.indexing import index_shards
from data_tools.labels import LabelRule
from data_tools.sources.base import data_home
from data_tools.store import ShardSpec, ShardStore, open_store

SHARDS_PER_PROCESS = 8  # at least


def write_index(
    location: str,
    label: str | None = None,
    label_field: str = "",
    classes: str | None = None,
    checksums: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> tuple[Path, ShardIndex]:
    """Write the index of shards that others made, beside them; return its path and the index.

    Args:
        location: as for ``find_shards``.
        label: extension of the label members; None: as ``index_shards`` finds them.
        label_field: the field of a json member.
        classes: a file with the names of the classes, one a line.
        checksums: compute those, too.
        workers: processes.
        progress: show a bar.
    """
    found = find_shards(location)
    if found is None:
        reason = "names no tars that lack an index: expected a local folder, a pattern or a list of some"
        if "://" in location:
            reason = "is a URL: index a copy of these shards in a folder, and put its _info.json beside them"
        elif not set(location) & set("*?[{") and not os.path.exists(os.path.expanduser(location)):
            reason = "is not there"
        raise ShardError(f"{location} {reason}")
    path = found.root / INDEX_NAME
    if path.exists():
        raise ShardError(f"{path} is there already: move it, or use these shards with it as they are")
    if label_field and label not in (None, "json"):
        raise ShardError(f"--label_field is of json members, not of .{label}")
    rule = LabelRule(member="json" if label_field else label, field=label_field) if label or label_field else None
    names: list[str] = []
    if classes:
        with reported(f"cannot read {classes}", (OSError, UnicodeError)):
            names = [line.strip() for line in Path(classes).read_text("utf-8").splitlines() if line.strip()]
    index = index_shards(found, label=rule, class_names=names, checksums=checksums, workers=workers, progress=progress)
    with reported(f"cannot write {path}"):
        _write(path, index)
    return path, index


def _write(path: Path, index: ShardIndex) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    # Exclusively: in a folder of several users it might be a link.
    with open(partial, "xb") as file:
        file.write(index.to_json())
    partial.replace(path)


def open_shards(location: str, **options: Any) -> tuple[ShardStore, ShardIndex]:
    """Return access to shards and their index, which is made where there is none.

    Args:
        location: as for ``find_shards`` and ``open_store``.
        options: of ``open_store``.
    """
    found = find_shards(location)
    if found is None:
        store = open_store(location, **options)
        return store, store.read_index()
    return ShardStore(ShardSpec(location, f"{found.root}/")), _kept_index(found, data_home() / "indexes")


def _kept_index(found: Found, folder: Path) -> ShardIndex:
    """Return the index of others' shards from ``folder``; one process makes it, and says so on standard error."""
    digest = hashlib.sha256(os.path.realpath(found.root).encode(errors="surrogateescape"))
    for split, names in found.splits.items():
        for name in names:
            path = found.root / name
            with reported(f"cannot read shard {path}"):
                state = path.stat()
            # Files of another size or time are other shards.
            digest.update(f"{split} {name} {state.st_size} {state.st_mtime_ns}\n".encode(errors="replace"))
    path = folder / f"{digest.hexdigest()[:32]}.json"
    advice = "; set DIST_PRUNE_DATA to a folder that you may write to"
    with reported(f"cannot keep the index of {found.root} in {folder}", fix=advice):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _make_index(found, path)
    return parse_index(path.read_bytes(), path, found.root)


def _make_index(found: Found, path: Path) -> None:
    begin = time.monotonic()
    # A process takes longer to start than to read the headers of a few shards.
    workers = min(int(joblib.cpu_count()), 1 + sum(map(len, found.splits.values())) // SHARDS_PER_PROCESS)
    index = index_shards(found, workers=workers, progress=sys.stderr.isatty())
    _write(path, index)
    splits = ", ".join(f"{name} {split.num_samples:,}" for name, split in index.splits.items())
    tqdm.write(
        f"made the index of {found.root} in {time.monotonic() - begin:.1f} s: {splits} images in "
        f"{len(index.class_names):,} classes, labels in .{index.label.member}; kept in {path}",
        file=sys.stderr,
    )
