"""The index of shards that others made: samples are counted by headers, some images are measured."""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from data_tools import tar
from data_tools.errors import ShardError, reported
from data_tools.find import Found, Splits
from data_tools.images import ImageStatistics
from data_tools.index import ShardIndex, ShardSplit
from data_tools.labels import FIELDS, LARGEST_LABEL, LabelRule, classes_of, is_number, spelled, why_no_class
from data_tools.scanning import Scan, Scanner, opened, scan_all
from data_tools.store import ShardStore

MEASURED = 5000  # images that decide mean and deviation, evenly from all shards of train
MOST_CLASSES = 100_000
LONGEST_NAME = 200  # characters of a class name; longer labels are captions
NEARLY_ALL = 0.99  # of the labels
FEW = 50  # labels, below which each may well have a class of its own


def index_shards(
    found: Found,
    *,
    label: LabelRule | None = None,
    class_names: Sequence[str] = (),
    checksums: bool = False,
    workers: int = 1,
    journal: Path,
    progress: bool = False,
) -> ShardIndex:
    """Make the index of shards that others made.

    Args:
        found: by ``find_shards``.
        label: where the labels are; None: in ``cls``, ``json`` or ``txt`` members, whichever there are.
        class_names: of all classes, by number; without it they are gathered from the labels.
        checksums: compute those too, which reads every byte.
        workers: processes.
        journal: a file that keeps what was found in each shard, until all are; the caller removes it.
        progress: show a bar.

    Raises:
        ShardError: a shard is missing or damaged, there are no samples, or labels are no classes.
    """
    splits = in_order_of_use(found.splits)
    store, root = found.store, found.store.spec.root
    rule = label or _rule_of(store, splits)
    # Train comes first; shards to evaluate on may be alone.
    measured = next(iter(splits))
    scanner = Scanner(store, rule, checksums, {measured: -(-MEASURED // len(splits[measured]))})
    tasks = [(split, name) for split, names in splits.items() for name in names]
    scans = scan_all(scanner, tasks, workers, journal, progress)
    in_order = [(split, scans[name]) for split, name in tasks if scans[name].shard.length]
    if not in_order:
        raise ShardError(f"no samples in {root}: expected images ({', '.join(tar.IMAGES)}) and .{rule.member}")
    statistics = ImageStatistics()
    for _, scan in in_order:
        statistics.merge(scan.statistics)
    if not statistics.pixels:
        raise ShardError(f"no readable image in the {measured} shards of {root}")
    mean, std = statistics.mean_and_std
    rule, names = _classes(rule, [scan for _, scan in in_order], class_names, root)
    rows = {split: [scan.shard for of, scan in in_order if of == split] for split in splits}
    digest = hashlib.sha256(repr((rule, names, [(split, scan.digest) for split, scan in in_order])).encode())
    with reported(f"cannot use {root}", ValidationError):
        return ShardIndex(
            name=root.rstrip("/").rpartition("/")[2] or "shards",
            source="shards of others",
            seed=0,
            fingerprint=digest.hexdigest(),
            class_names=names,
            image_shape=statistics.image_shape,
            mean=mean,
            std=std,
            class_titles=(),
            label=rule,
            splits={split: ShardSplit.of(split, shards) for split, shards in rows.items() if shards},
            root=root if store.is_remote else Path(root),
        )


def in_order_of_use(splits: Splits) -> Splits:
    """Return splits, train first; where there is no test split, the validation split is it."""
    ordered = {name: splits[name] for name in sorted(splits, key=lambda name: (name != "train", name))}
    if "test" not in ordered and "validation" in ordered:
        ordered["test"] = ordered.pop("validation")
    return ordered


def _rule_of(store: ShardStore, splits: Mapping[str, Sequence[str]]) -> LabelRule:
    """Return where the labels are, by the first sample that has an image and any."""
    for name in itertools.chain.from_iterable(splits.values()):
        with store.temporary_copy(name) as path, opened(path) as file:
            for _, parts in tar.samples(tar.members(file)):
                if tar.images_of(parts) and (rule := _rule_of_sample(file, parts)):
                    return rule
    raise ShardError(
        f"no labels in {store.spec.root}: expected members .cls or .txt, or .json with a field {', '.join(FIELDS)}; "
        "name another one with dist-prune shards index --label json --label_field NAME"
    )


def _rule_of_sample(file: IO[bytes], parts: tar.Parts) -> LabelRule | None:
    if "cls" in parts:
        return LabelRule(member="cls")
    if "json" in parts:
        member = parts["json"]
        try:
            content = json.loads(os.pread(file.fileno(), min(member.size, LARGEST_LABEL), member.offset))
        except (ValueError, RecursionError):
            content = None
        fields = [field for field in FIELDS if isinstance(content, dict) and field in content]
        if fields:
            return LabelRule(member="json", field=fields[0])
    return LabelRule(member="txt") if "txt" in parts else None


def _classes(
    rule: LabelRule, scans: Sequence[Scan], given: Sequence[str], root: str
) -> tuple[LabelRule, tuple[str, ...]]:
    """Return how labels stand for classes, and the names of the classes.

    Labels that are no classes are bad samples: with ``given`` names the others, and else the few that are no numbers
    where nearly all are.
    """
    counts = Counter[str]()
    for scan in scans:
        counts.update(scan.labels)
    if not counts:
        raise ShardError(f"no label in {root} can be read: expected one number or name in each .{rule.member}")
    total, longest = counts.total(), max(counts, key=len)
    odd = {label: why for label in counts if label not in given and (why := why_no_class(label))}
    if sum(counts[label] for label in odd) > (1 - NEARLY_ALL) * total:
        label, why = next(iter(odd.items()))
        raise ShardError(f".{rule.member} in {root} holds {label[:40]!r}, {why}: expected one class for each image")
    counts = Counter({label: n for label, n in counts.items() if label not in odd and len(label) <= LONGEST_NAME})
    if len(counts) > MOST_CLASSES or counts.total() < NEARLY_ALL * total:
        raise ShardError(f".{rule.member} in {root} holds no classes but texts such as {longest[:40]!r}")
    if not given and counts.total() >= FEW and 2 * len(counts) > counts.total() and not any(map(is_number, counts)):
        raise ShardError(
            f".{rule.member} in {root} holds {len(counts):,} different texts in {counts.total():,} labels, such as "
            f"{longest[:40]!r}: captions are no classes; if these are, name them all in a file (classes)"
        )
    are_numbers = sum(counts[label] for label in filter(is_number, counts)) >= NEARLY_ALL * counts.total()
    by, names = classes_of(list(filter(is_number, counts)) if are_numbers else counts)
    if given:
        named = sum(counts[spelled(name)] for name in given)
        by, names = ("number" if are_numbers and named < counts.total() else "name"), tuple(given)
    return rule.model_copy(update={"by": by}), names
