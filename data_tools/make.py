"""Write a data set as WebDataset shards: shuffled once, checked, atomic, the same bytes every time."""

from pathlib import Path

from tqdm import tqdm

from data_tools.errors import ShardError, reported, suggestion
from data_tools.existing_output import (
    SUFFIX,
    Sidecar,
    checked,
    concurrent_index,
    find_index,
    finished_shards,
    matches_request,
    remove_sidecars,
    same_shards,
)
from data_tools.index import INDEX_NAME, SEEDS, Shard, ShardIndex, ShardSplit, checksum
from data_tools.output import OutputStore, open_output
from data_tools.parallel import each
from data_tools.plan import ShardPlan, ShardSet, ShardSize, plan_shards
from data_tools.sources import SOURCES
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

    If ``out`` already holds exactly these shards, complete, they stay as they are; if their maker was
    interrupted, this one continues. The bytes depend neither on that nor on the number of workers.

    Args:
        source: a key of ``SOURCES``.
        folder: where the raw files are; None for data sets that can be had without.
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
    if source not in SOURCES:
        raise ShardError(f"unknown source {source!r}{suggestion(source, SOURCES)}; known: {', '.join(SOURCES)}")
    dataset = SOURCES[source]
    if test_fraction is not None and not dataset.takes_test_fraction:
        raise ShardError(f"{source} has its own test images: remove --test_fraction")
    form = _chosen_format(format, dataset.arrays)
    size = ShardSize.of(
        samples_per_shard, bytes_per_shard, dataset.samples_per_shard or WRITERS[form].samples_per_shard
    )
    with open_output(out) as output:
        index = find_index(output)
        if index and folder is None and matches_request(index, source, seed, form, size, test_fraction):
            return checked(index, output)
        options = ReadOptions(test_fraction, output.staging_dir, progress)
        raw = dataset.read(None if folder is None else Path(folder).expanduser(), options)
        wanted = plan_shards(source, raw, seed, size, form)
        output.prepare()
        index = index or concurrent_index(wanted, output)
        if index:
            return same_shards(index, wanted, output)
        index = _assemble(wanted, _write_missing(wanted, output, workers, progress), output)
        output.write(INDEX_NAME, index.to_json())
        # Last, so that an interruption before the index loses nothing.
        remove_sidecars(index, output, output.sizes())
    return index


def _chosen_format(name: str, arrays: bool) -> str:
    if name == "auto":
        return "raw" if arrays else "files"
    if name not in WRITERS:
        known = ["auto", *WRITERS]
        raise ShardError(f"unknown format {name!r}{suggestion(name, known)}; known: {', '.join(known)}")
    return name


def _write_missing(wanted: ShardSet, output: OutputStore, workers: int, progress: bool) -> dict[str, Sidecar]:
    """Write the shards that are not finished; return the sidecars of all by the shard's name."""
    from webdataset import TarWriter  # imports torch, which reading and verifying do without

    def write(plan: ShardPlan) -> Sidecar:
        path = output.staging_dir / plan.name
        with reported(f"cannot write {path}"):
            with open(path, "wb") as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
                statistics = wanted.writer.write(tar, plan, wanted.raw.splits[plan.split])
            shard = Shard(plan.name, len(plan.numbers), checksum(path, "sha256"), path.stat().st_size)
        return Sidecar(fingerprint=wanted.fingerprint, shard=shard, statistics=statistics)

    finished = finished_shards(wanted, output)
    missing = [plan for plan in wanted.plans if plan.name not in finished]
    bar = tqdm(
        total=sum(len(plan.numbers) for plan in wanted.plans),
        initial=sum(sidecar.shard.length for sidecar in finished.values()),
        unit=" images",
        desc=wanted.raw.name,
        disable=not progress,
    )
    with bar:
        for sidecar in each(write, missing, workers):
            # The sidecar first: a shard without one would be refused as made by somebody else.
            output.write(sidecar.shard.name + SUFFIX, sidecar.to_json())
            output.publish(sidecar.shard.name)
            finished[sidecar.shard.name] = sidecar
            bar.update(sidecar.shard.length)
    return finished


def _assemble(wanted: ShardSet, finished: dict[str, Sidecar], output: OutputStore) -> ShardIndex:
    """Return the index of the finished shards."""
    raw, statistics = wanted.raw, ImageStatistics()
    for sidecar in finished.values():
        statistics.merge(sidecar.statistics)
    mean, std = statistics.mean_and_std
    shards = {name: [finished[plan.name].shard for plan in wanted.plans if plan.split == name] for name in raw.splits}
    return ShardIndex(
        name=raw.name,
        source=wanted.source,
        seed=wanted.seed,
        fingerprint=wanted.fingerprint,
        class_names=raw.class_names,
        image_shape=statistics.image_shape,
        mean=mean,
        std=std,
        format=wanted.writer.format,
        class_titles=raw.class_titles,
        splits={name: ShardSplit.of(name, rows) for name, rows in shards.items()},
        root=output.root,
    )
