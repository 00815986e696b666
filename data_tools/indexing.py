"""The index of shards that others made: samples are counted by headers, some images are measured."""

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from pydantic import ValidationError
from tqdm import tqdm

from data_tools import tar
from data_tools.errors import ShardError, reported
from data_tools.find import Found
from data_tools.images import ImageError, ImageStatistics, decode_pixels, read_header
from data_tools.index import Shard, ShardIndex, ShardSplit, checksum
from data_tools.labels import LARGEST_LABEL, LabelRule, spelled
from data_tools.parallel import each

MEASURED = 5000  # images that decide mean and deviation, evenly from all shards of train
HEADER_BYTES = 2**16  # of an image, which hold its size, unless a color profile comes first
MOST_CLASSES = 100_000
LONGEST_NAME = 200  # characters of a class name; longer labels are captions
NEARLY_ALL = 0.99  # of the labels
# Fields of a json member that hold its label, in the order in which they are looked for.
FIELDS = ("label", "cls", "class", "class_id", "label_id", "target", "class_name")


def index_shards(
    found: Found,
    *,
    label: LabelRule | None = None,
    class_names: Sequence[str] = (),
    checksums: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> ShardIndex:
    """Make the index of shards that others made.

    Args:
        found: by ``find_shards``.
        label: where the labels are; None: in ``cls``, ``json`` or ``txt`` members, whichever there are.
        class_names: of all classes, by number; without it they are gathered from the labels.
        checksums: compute those too, which reads every byte.
        workers: processes.
        progress: show a bar.

    Raises:
        ShardError: a shard is missing or damaged, there are no samples, or labels are no classes.
    """
    splits = {name: found.splits[name] for name in sorted(found.splits, key=lambda name: (name != "train", name))}
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")  # what runs are measured on has this name
    rule = label or _rule_of(found.root, splits)
    # Train comes first; shards to evaluate on may be alone.
    measured = next(iter(splits))
    each_measures = -(-MEASURED // len(splits[measured]))
    work = functools.partial(_scan, found.root, rule, checksums, {measured: each_measures})
    tasks = [(split, name) for split, names in splits.items() for name in names]
    scans: dict[tuple[str, str], _Scan] = {}
    with tqdm(total=len(tasks), unit=" shards", desc=f"reading headers of {found.root}", disable=not progress) as bar:
        for scan in each(work, tasks, workers):
            scans[scan.task] = scan
            bar.update()
    in_order = [scans[task] for task in tasks if scans[task].shard.length]
    if not in_order:
        raise ShardError(f"no samples in {found.root}: expected images ({', '.join(tar.IMAGES)}) and .{rule.member}")
    statistics = ImageStatistics()
    for scan in in_order:
        statistics.merge(scan.statistics)
    if not statistics.pixels:
        raise ShardError(f"no readable image in {found.root}")
    mean, std = statistics.mean_and_std
    rule, names = _classes(rule, in_order, class_names, found.root)
    rows = {split: [scan.shard for scan in in_order if scan.task[0] == split] for split in splits}
    digest = hashlib.sha256(repr((rule, names, [(scan.task[0], scan.digest) for scan in in_order])).encode())
    with reported(f"cannot use {found.root}", ValidationError):
        return ShardIndex(
            name=found.root.resolve().name or "shards",
            source="shards of others",
            seed=0,
            fingerprint=digest.hexdigest(),
            class_names=names,
            image_shape=statistics.image_shape,
            mean=mean,
            std=std,
            format="files",
            class_titles=(),
            label=rule,
            splits={split: ShardSplit.of(split, shards) for split, shards in rows.items() if shards},
            root=found.root,
        )


class _Scan(NamedTuple):
    """What was found in one shard: its labels as they are written, and a digest of all that it holds."""

    task: tuple[str, str]
    shard: Shard
    labels: Counter[str]
    digest: str
    statistics: ImageStatistics


def _scan(root: Path, rule: LabelRule, checksums: bool, measured: Mapping[str, int], task: tuple[str, str]) -> _Scan:
    path = root / task[1]
    labels, statistics, digest, count = Counter[str](), ImageStatistics(), hashlib.sha256(), 0
    with _opened(path) as file:
        for key, parts in tar.samples(tar.members(file)):
            if not tar.is_sample(parts, rule.member):
                continue
            # Samples that cannot be used count as well: a run stops there, or skips them, as bad_data says.
            label = _text(file, rule, parts)
            labels.update([label] if label is not None else [])
            images = tar.images_of(parts)
            size = images[0].size if images else 0
            digest.update(f"{key} {size} {label}\n".encode(errors="replace"))
            if len(images) == 1:
                _look(file, images[0], statistics, measure=count < measured.get(task[0], 0))
            count += 1
        size = os.fstat(file.fileno()).st_size
        shard = Shard(task[1], count, checksum(path, "sha256") if checksums else None, size)
    return _Scan(task, shard, labels, digest.hexdigest(), statistics)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    damaged = reported(f"damaged shard {path}", ValueError, "; copy it again")
    with reported(f"cannot read shard {path}"), damaged, open(path, "rb", buffering=0) as file:
        yield file


def _text(file: IO[bytes], rule: LabelRule, parts: tar.Parts) -> str | None:
    if rule.member not in parts:
        return None
    member = parts[rule.member]
    try:
        return rule.text(os.pread(file.fileno(), min(member.size, LARGEST_LABEL), member.offset))
    except ValueError:
        return None


def _look(file: IO[bytes], image: tar.Member, statistics: ImageStatistics, measure: bool) -> None:
    """Count the size of an image, and its pixels if it is measured."""
    if image.size > tar.LARGEST_IMAGE:
        return
    # What comes before the size may be longer, such as a color profile.
    for length in sorted({image.size if measure else min(image.size, HEADER_BYTES), image.size}):
        data = os.pread(file.fileno(), length, image.offset)
        with contextlib.suppress(ImageError):
            facts = read_header(data)
            if measure:
                statistics.measure(decode_pixels(data, 1 if facts.gray else 3))
            statistics.see(facts)
            return


def _rule_of(root: Path, splits: Mapping[str, Sequence[str]]) -> LabelRule:
    """Return where the labels are, by the first sample that has an image and any."""
    for name in itertools.chain.from_iterable(splits.values()):
        path = root / name
        with _opened(path) as file:
            for _, parts in tar.samples(tar.members(file)):
                if tar.images_of(parts) and (rule := _rule_of_sample(file, parts)):
                    return rule
    raise ShardError(
        f"no labels in {root}: expected members .cls or .txt, or .json with a field {', '.join(FIELDS)}; "
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
    rule: LabelRule, scans: Sequence[_Scan], given: Sequence[str], root: Path
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
    counts = Counter({label: count for label, count in counts.items() if len(label) <= LONGEST_NAME})
    if len(counts) > MOST_CLASSES or counts.total() < NEARLY_ALL * total:
        raise ShardError(f".{rule.member} in {root} holds no classes but texts such as {longest[:40]!r}")
    numbers = {int(label): count for label, count in counts.items() if label.isascii() and label.isdigit()}
    are_numbers = sum(numbers.values()) >= NEARLY_ALL * counts.total()
    by_number, by_name = (rule.model_copy(update={"by": kind}) for kind in ("number", "name"))
    if given:
        named = sum(counts[spelled(name)] for name in given)
        return (by_number if are_numbers and named < counts.total() else by_name), tuple(given)
    if are_numbers:
        largest = max(numbers)
        # Classes that have no images are rare. So numbers that do not start at 0, or leave out many, are names.
        if min(numbers) == 0 and largest < 2 * len(numbers):
            return by_number, tuple(map(str, range(largest + 1)))
        return by_name, tuple(map(str, sorted(numbers)))
    return by_name, tuple(sorted(counts))
