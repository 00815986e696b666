"""Writes a data set as WebDataset shards: shuffled once, checked, atomic, the same bytes every time."""

from pathlib import Path

from tqdm import tqdm
from webdataset import TarWriter

from data_tools.errors import ShardError
from data_tools.files import atomic_writer
from data_tools.index import Shard, ShardIndex, ShardSplit, format_index
from data_tools.journal import Finished, Journal
from data_tools.location import INDEX_NAME
from data_tools.parallel import each
from data_tools.places import Place, open_place
from data_tools.present import checked, find_index, other_makers_index, same_shards, was_asked_for
from data_tools.schema import SEEDS
from data_tools.shard_set import ShardPlan, ShardSet, ShardSize, plan_shards
from data_tools.sources import find_source, suggestion
from data_tools.sources.base import ReadOptions
from data_tools.statistics import ImageStatistics
from data_tools.writers import WRITERS


def make_shards(
    source: str,
    folder: str | Path | None,
    out: str | Path,
    *,
    format: str = "auto",
    samples_per_shard: int | None = None,
    bytes_per_shard: int | None = None,
    workers: int = 1,
    seed: int = 0,
    test_fraction: float | None = None,
    progress: bool = False,
) -> ShardIndex:
    """Write the shards and the index of a data set into ``out``, a folder or the URL of one.

    If ``out`` already holds just these shards, complete, they stay as they are; if a writer of them was
    interrupted, this one goes on. The bytes depend neither on that nor on the number of workers.

    Args:
        source: a key of ``SOURCES``.
        folder: where the raw files lie; None for data sets that can be had without.
        out: made if missing.
        format: ``files`` (encoded images), ``raw`` (arrays of pixels: tiny images of one size), or
            ``auto``, which is raw for sources that are arrays themselves.
        samples_per_shard: 1,000 encoded or 5,000 raw images unless given (``digits``: 360).
        bytes_per_shard: the most that a shard may have, instead of ``samples_per_shard``.
        workers: writing processes.
        seed: of the one shuffle, from 0 up.
        test_fraction: part of the train images to set aside if an image folder has no test images.
        progress: show a bar.

    Raises:
        ShardError: raw data missing or damaged, ``out`` holding other shards, or not writable.
    """
    if workers < 1 or not 0 <= seed < SEEDS:
        raise ShardError(f"workers ({workers}) start at 1, seeds ({seed}) at 0, below {SEEDS}")
    reader = find_source(source)
    form = _chosen_format(format, reader.arrays)
    size = _shard_size(samples_per_shard, bytes_per_shard, reader.samples_per_shard, form)
    with open_place(out) as place:
        found = find_index(place)
        if found and folder is None and was_asked_for(found, source, seed, form, size, test_fraction):
            return checked(found, place)
        options = ReadOptions(test_fraction, place.workshop, progress)
        raw = reader.read(None if folder is None else Path(folder).expanduser(), options)
        wanted = plan_shards(source, raw, seed, size, WRITERS[form](raw))
        place.prepare()
        journal = Journal(place, wanted.fingerprint)
        found = found or other_makers_index(wanted, place, journal)
        if found:
            return same_shards(found, wanted, place)
        finished = _write_missing(wanted, place, journal, workers, progress)
        index = _assemble(wanted, finished, place)
        place.write(INDEX_NAME, format_index(index))
        journal.close()
    return index


def _chosen_format(name: str, arrays: bool) -> str:
    if name == "auto":
        return "raw" if arrays else "files"
    if name not in WRITERS:
        known = ["auto", *WRITERS]
        raise ShardError(f"unknown format {name!r}{suggestion(name, known)}; known: {', '.join(known)}")
    return name


def _shard_size(samples: int | None, size: int | None, usual: int | None, form: str) -> ShardSize:
    if samples is not None and size is not None:
        raise ShardError("--samples_per_shard and --bytes_per_shard exclude each other: give one of them")
    for name, value in (("samples", samples), ("bytes", size)):
        if value is not None and value < 1:
            raise ShardError(f"{name} per shard start at 1, not {value}")
    if samples is None and size is None:
        samples = usual or WRITERS[form].samples_per_shard
    return ShardSize(samples, size)


def _write_missing(
    wanted: ShardSet, place: Place, journal: Journal, workers: int, progress: bool
) -> dict[str, Finished]:
    """Write the shards that the journal does not know; return all of them by name."""

    def write(plan: ShardPlan) -> Finished:
        path = place.workshop / plan.name
        with atomic_writer(path) as file, TarWriter(file, encoder=False, mtime=0) as tar:
            statistics = wanted.writer.write(tar, plan, wanted.raw.splits[plan.split])
        return Finished(Shard(plan.name, len(plan.numbers), file.sha256, file.size), statistics)

    finished = journal.open()
    missing = [plan for plan in wanted.plans if plan.name not in finished]
    bar = tqdm(
        total=sum(len(plan.numbers) for plan in wanted.plans),
        initial=sum(item.shard.length for item in finished.values()),
        unit=" images",
        desc=wanted.raw.name,
        disable=not progress,
    )
    with bar:
        for item in each(write, missing, workers):
            place.publish(item.shard.name)
            journal.add(item)
            finished[item.shard.name] = item
            bar.update(item.shard.length)
    return finished


def _assemble(wanted: ShardSet, finished: dict[str, Finished], place: Place) -> ShardIndex:
    """Put together the index of finished shards."""
    raw, statistics = wanted.raw, ImageStatistics()
    for item in finished.values():
        statistics.merge(item.statistics)
    mean, std = statistics.mean_and_std
    shards = {
        name: [finished[plan.name].shard for plan in wanted.plans if plan.split == name]
        for name in raw.splits
    }
    return ShardIndex(
        name=raw.name,
        source=wanted.source,
        seed=wanted.seed,
        fingerprint=wanted.fingerprint,
        class_names=raw.class_names,
        image_shape=statistics.image_shape,
        mean=mean,
        std=std,
        splits={name: ShardSplit(*zip(*rows, strict=True)) for name, rows in shards.items()},
        root=place.root,
        format=wanted.writer.format,
        class_titles=raw.class_titles,
    )
