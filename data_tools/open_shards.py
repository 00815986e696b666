"""Shards of any kind are opened here; the index of those that have none is made, once, and kept."""

import contextlib
import hashlib
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
from filelock import FileLock
from tqdm import tqdm

from data_tools.errors import ShardError, reported
from data_tools.find import Found, Splits, find_shards
from data_tools.index import INDEX_NAME, ShardIndex, parse_index
from data_tools.indexing import in_order_of_use, index_shards
from data_tools.labels import LabelRule
from data_tools.sources.base import data_home
from data_tools.store import ShardStore

SHARDS_PER_PROCESS = 8  # at least
SKETCHED = 5  # shards of a split that are looked into until one has samples
LARGEST_LIST = 2**24  # bytes of a list of classes


class Labelling(NamedTuple):
    """What the user says of the labels of shards that others made; empty: what is found there.

    Attributes:
        label: extension of the label members.
        field: the field of a json member.
        classes: a file with the names of the classes, one a line, or their number.
    """

    label: str | None = None
    field: str = ""
    classes: str | int | None = None

    def rule(self) -> LabelRule | None:
        """Return where the labels are, if the user says so."""
        if self.field and self.label not in (None, "json"):
            raise ShardError(f"a field ({self.field}) is of json members, not of .{self.label}")
        member = "json" if self.field else self.label
        return LabelRule(member=member, field=self.field) if member else None

    def class_names(self) -> list[str]:
        """Return the names of the classes, if the user says them."""
        if not isinstance(self.classes, str):
            return list(map(str, range(self.classes or 0)))
        path = Path(self.classes).expanduser()
        with reported(f"cannot read {path}", (OSError, UnicodeError)):
            # It may be a device, or any large file.
            with open(path, "rb") as file:
                text = file.read(LARGEST_LIST + 1)
            if len(text) > LARGEST_LIST:
                raise ShardError(f"{path} is larger than a list of classes may be ({LARGEST_LIST:,} bytes)")
            names = [line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip()]
        if not names:
            raise ShardError(f"{path} names no classes: expected one on each line")
        return names


FOUND = Labelling()


def write_index(
    location: str,
    labelling: Labelling,
    out: str | None = None,
    checksums: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> tuple[Path, ShardIndex]:
    """Write the index of shards that others made; return its path and the index.

    It goes on where an interrupted call has stopped.

    Args:
        location: as for ``find_shards``.
        labelling: where the labels are and what they mean, if the user says so.
        out: where to write it; None: beside the shards, if they are in a folder.
        checksums: compute those, too.
        workers: processes.
        progress: show a bar.
    """
    found = find_shards(location)
    if found.index:
        raise ShardError(f"{location} has an index already: move that, or use these shards with it as they are")
    if found.store.is_remote and not out:
        raise ShardError(f"{location} is remote: say with --out where to write the index, and copy it there")
    path = Path(out).expanduser() if out else Path(found.store.spec.root, INDEX_NAME)
    if path.exists():
        raise ShardError(f"{path} is there already: move it")
    journal = path.with_name(f".{path.name}.scans")
    index = index_shards(
        found,
        label=labelling.rule(),
        class_names=labelling.class_names(),
        checksums=checksums,
        workers=workers,
        journal=journal,
        progress=progress,
    )
    with reported(f"cannot write {path}"):
        _write(path, index)
        journal.unlink(missing_ok=True)
    return path, index


def _write(path: Path, index: ShardIndex) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    # Exclusively: in a folder of several users it might be a link.
    with open(partial, "xb") as file:
        file.write(index.to_json())
    partial.replace(path)


def open_shards(
    location: str, labelling: Labelling = FOUND, may_be_said: bool = False, **options: Any
) -> tuple[ShardStore, ShardIndex]:
    """Return access to shards and their index, which is made where there is none.

    Args:
        location: as for ``find_shards`` and ``open_store``.
        labelling: where the labels are and what they mean, if the user says so.
        may_be_said: an index that says it already has precedence; without this, that is an error.
        options: of ``open_store``.

    Raises:
        ShardError: nothing there, or damaged shards; ``labelling`` of shards whose index says it already.
    """
    found = find_shards(location, **options)
    if found.index is None:
        return found.store, _kept_index(found, labelling, data_home() / "indexes")
    _check_said(location, labelling, may_be_said)
    return found.store, found.index


def _check_said(location: str, labelling: Labelling, may_be_said: bool) -> None:
    if labelling != FOUND and not may_be_said:
        raise ShardError(f"{location} has an index that says where labels are and what they mean: leave that out")


def sketch_shards(
    location: str, labelling: Labelling = FOUND, may_be_said: bool = False, **options: Any
) -> tuple[ShardStore, ShardIndex, Splits]:
    """Return access to shards, an index and the names of all; without an index, one of a first shard of each split.

    Args:
        location: as for ``find_shards`` and ``open_store``.
        labelling: where the labels are; the classes must be said if there is no index.
        may_be_said: as for ``open_shards``.
        options: of ``open_store``.

    Raises:
        ShardError: as ``open_shards``; nobody says how many classes there are.
    """
    found = find_shards(location, **options)
    if found.index:
        _check_said(location, labelling, may_be_said)
        return found.store, found.index, {name: split.filenames for name, split in found.index.splits.items()}
    names = labelling.class_names()
    if not names:
        raise ShardError(f"{location} has no index that says which classes there are: set data.classes, or order=exact")
    problem = ShardError(f"no samples in the first {SKETCHED} shards of some split of {location}")
    for number in range(min(SKETCHED, max(map(len, found.splits.values())))):
        some = {name: tars[number : number + 1] or tars[:1] for name, tars in found.splits.items()}
        with tempfile.TemporaryDirectory(prefix="dist_prune-") as folder:
            try:
                index = index_shards(
                    Found(found.store, splits=some),
                    label=labelling.rule(),
                    class_names=names,
                    journal=Path(folder, "scans"),
                )
            except ShardError as error:
                # Of the first shards, whose fault it mostly is; a shard may also be empty.
                problem = error if number == 0 else problem
                continue
        # A split whose shard is empty is missing, and another one would take its place.
        if len(index.splits) == len(some):
            return found.store, index, in_order_of_use(found.splits)
    raise problem


def _kept_index(found: Found, labelling: Labelling, folder: Path) -> ShardIndex:
    """Return the index of others' shards from ``folder``; one process makes it, and says so on standard error."""
    names, root = labelling.class_names(), found.store.spec.root
    digest = hashlib.sha256(
        (root if found.store.is_remote else os.path.realpath(root)).encode(errors="surrogateescape")
    )
    if labelling != FOUND:
        digest.update(f"{labelling.label} {labelling.field} {names}".encode(errors="surrogateescape"))
    for split, tars in found.splits.items():
        for name in tars:
            digest.update(f"{split} {name} {_state_of(found.store, name)}\n".encode(errors="replace"))
    path = folder / f"{digest.hexdigest()[:32]}.json"
    advice = "; set DIST_PRUNE_DATA to a folder that you may write to"
    with reported(f"cannot keep the index of {root} in {folder}", fix=advice):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            # One that a failing disk has damaged is made anew.
            with contextlib.suppress(FileNotFoundError, ShardError):
                return parse_index(path.read_bytes(), path, root if found.store.is_remote else Path(root))
            _make_index(found, labelling.rule(), names, path)
    return parse_index(path.read_bytes(), path, root if found.store.is_remote else Path(root))


def _state_of(store: ShardStore, name: str) -> str:
    """Return what tells a shard from another of this name: size and time; of a remote one nobody knows them yet."""
    if store.is_remote:
        return ""
    path = store.address_of(name)
    with reported(f"cannot read shard {path}"):
        state = os.stat(path)
    return f"{state.st_size} {state.st_mtime_ns}"


def _make_index(found: Found, rule: LabelRule | None, names: Sequence[str], path: Path) -> None:
    begin = time.monotonic()
    # A process takes longer to start than to read the headers of a few shards.
    workers = min(int(joblib.cpu_count()), 1 + sum(map(len, found.splits.values())) // SHARDS_PER_PROCESS)
    index = index_shards(
        found,
        label=rule,
        class_names=names,
        workers=workers,
        journal=path.with_suffix(".scans"),
        progress=sys.stderr.isatty(),
    )
    _write(path, index)
    path.with_suffix(".scans").unlink(missing_ok=True)
    splits = ", ".join(f"{name} {split.num_samples:,}" for name, split in index.splits.items())
    tqdm.write(
        f"made the index of {found.store.spec} in {time.monotonic() - begin:.1f} s: {splits} images in "
        f"{len(index.class_names):,} classes, labels in .{index.label.member}; kept in {path}",
        file=sys.stderr,
    )
