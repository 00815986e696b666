"""Read every byte of a data set in shards, and name each broken shard and sample."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from data_tools import tar
from data_tools.errors import ShardError
from data_tools.images import ImageError, decode_pixels
from data_tools.index import Shard, ShardIndex
from data_tools.labels import LARGEST_LABEL, Labels
from data_tools.open_shards import open_shards
from data_tools.parallel import each
from data_tools.store import ShardStore

SHOWN_PER_SHARD = 20


def verify_shards(
    location: str | Path, *, split: str | None = None, workers: int = 1, progress: bool = False
) -> list[str]:
    """Return the problems of a data set in shards, a line each.

    Checked are sizes and checksums, the number of samples, repeated keys, labels that are no classes, and
    that every image can be decoded.

    Args:
        location: as for ``find_shards`` and ``open_store``; remote shards are copied one by one.
        split: the only one to check.
        workers: processes.
        progress: show a bar.

    Raises:
        ShardError: there are no shards, or their index cannot be right, or it has no such split.
    """
    store, index = open_shards(str(location))
    shards = list(index.shards()) if split is None else index.split(split).shards
    reports = {}
    total = sum(shard.length for shard in shards)
    with tqdm(total=total, unit=" samples", desc=index.name, disable=not progress) as bar:
        for report in each(functools.partial(_check_shard, store, index), shards, workers):
            reports[report.shard.name] = report
            bar.update(report.shard.length)
    found = [(shard.name, problem) for shard in shards for problem in reports[shard.name].problems]
    # Others number the samples of each split from 0.
    for part in index.splits.values():
        found += _shared_keys([reports[shard.name] for shard in part.shards if shard.name in reports])
    return [f"{index.root}/{name}: {problem}" for name, problem in found]


class _Report(NamedTuple):
    """The keys of the samples in a shard, and its problems in words."""

    shard: Shard
    keys: dict[str, None]  # in order
    problems: list[str]


def _check_shard(store: ShardStore, index: ShardIndex, shard: Shard) -> _Report:
    report = _Report(shard, {}, [])
    try:
        with store.temporary_copy(shard.name, shard.size) as path:
            if problem := shard.mismatch(path):
                report.problems.append(problem)
            with open(path, "rb", buffering=0) as file:
                report.problems.extend(_sample_problems(file, index, report))
    except (ShardError, ValueError) as error:  # of the tar; nothing behind it can be checked
        report.problems.append(str(error))
    except OSError as error:
        report.problems.append(error.strerror or str(error))
    more = len(report.problems) - SHOWN_PER_SHARD
    if more > 0:
        report.problems[SHOWN_PER_SHARD:] = [f"and {more} more problems"]
    return report


def _sample_problems(file: IO[bytes], index: ShardIndex, report: _Report) -> Iterator[str]:
    """Check encoded images and their labels."""
    labels, label_member = Labels(index.label, index.class_names), index.label.member
    count = 0
    for key, parts in tar.samples(tar.members(file)):
        found = []
        if tar.is_sample(parts, label_member):
            found += [*_image_problems(file, index, parts), *_label_problems(file, parts.get(label_member), labels)]
            found += ["its key comes twice"] if key in report.keys else []
            report.keys[key] = None
            count += 1
        yield from (f"sample {key}: {problem}" for problem in found)
    if count != report.shard.length:
        yield f"{count} samples where the index says {report.shard.length}"


def _image_problems(file: IO[bytes], index: ShardIndex, parts: tar.Parts) -> Iterator[str]:
    images = tar.images_of(parts)
    if len(images) != 1:
        yield f"{len(images)} images where one is expected"
    for member in images:
        if member.size > tar.LARGEST_IMAGE:
            yield f"an image of {member.size} bytes, {tar.LARGEST_IMAGE} are allowed"
            continue
        try:
            pixels = decode_pixels(_read(file, member, tar.LARGEST_IMAGE), index.channels)
        except ImageError as error:
            yield str(error)
            continue
        shape = (index.channels, *pixels.shape[:2])
        if index.image_shape and shape != index.image_shape:
            yield f"the image has the shape {shape} where the index says {index.image_shape}"


def _label_problems(file: IO[bytes], member: tar.Member | None, labels: Labels) -> Iterator[str]:
    try:
        labels.number(_read(file, member, LARGEST_LABEL) if member else b"")
    except ValueError as error:
        yield str(error)


def _read(file: IO[bytes], member: tar.Member, limit: int) -> bytes:
    return os.pread(file.fileno(), min(member.size, limit), member.offset)


def _shared_keys(reports: list[_Report]) -> Iterator[tuple[str, str]]:
    """Yield (shard, problem) for the keys that come in more than one shard."""
    first: dict[str, str] = {}
    for report in reports:
        for key in report.keys:
            owner = first.setdefault(key, report.shard.name)
            if owner != report.shard.name:
                yield report.shard.name, f"sample {key} is in {owner} too"
