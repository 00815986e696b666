"""Write a data set as WebDataset shards: shuffled once, checked, atomic, the same bytes every time.

A sidecar stands beside each finished shard until the index is written, so that an interrupted maker can be
continued. It is written before its shard: a shard without sidecar and index was made by somebody else.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from data_tools.errors import ShardError, reported, unknown
from data_tools.images import ImageStatistics
from data_tools.index import INDEX_NAME, SEEDS, Shard, ShardIndex, ShardSplit, checksum, parse_index
from data_tools.output import OutputStore
from data_tools.parallel import each
from data_tools.sources import SOURCES
from data_tools.sources.base import ReadOptions
from data_tools.sources.folders import refuse_test_fraction
from data_tools.writers import SAMPLES_PER_SHARD, ShardPlan, ShardSet, plan_shards

SUFFIX = ".json"


class Sidecar(BaseModel):
    """A finished shard of the data set ``fingerprint``, and the statistics of its images."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    shard: Shard
    statistics: ImageStatistics


def make_shards(
    source: str,
    folder: str | Path | None,
    out: str | Path,
    *,
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
        samples_per_shard: 1,000 images unless given (``digits``: 360).
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
        raise unknown("source", source, SOURCES)
    dataset = SOURCES[source]
    if not dataset.takes_test_fraction:
        refuse_test_fraction(test_fraction, source)
    if samples_per_shard is not None and bytes_per_shard is not None:
        raise ShardError("--samples_per_shard and --bytes_per_shard exclude each other: give one of them")
    for unit, value in (("samples", samples_per_shard), ("bytes", bytes_per_shard)):
        if value is not None and value < 1:
            raise ShardError(f"{unit} per shard start at 1, not {value}")
    if bytes_per_shard is None:
        samples_per_shard = samples_per_shard or dataset.samples_per_shard or SAMPLES_PER_SHARD
    with OutputStore(out) as output:
        index = _find_index(output)
        # Data that need no folder are not read again: a rerun needs no network.
        by_name = folder is None and test_fraction is None
        if index and by_name and _matches(index, source, seed, samples_per_shard):
            return _finish(index, output)
        options = ReadOptions(test_fraction, output.staging_dir, progress)
        raw = dataset.read(None if folder is None else Path(folder).expanduser(), options)
        wanted = plan_shards(source, raw, seed, samples_per_shard, bytes_per_shard)
        output.prepare()
        index = index or _concurrent_index(wanted, output)
        if index is None:
            index = _assemble(wanted, _write_missing(wanted, output, workers, progress), output)
            output.write(INDEX_NAME, index.to_json())
        elif index.fingerprint != wanted.fingerprint:
            raise ShardError(
                f"{index.root} already holds other shards ({index.name} from {index.source}, seed {index.seed}): "
                "choose another --out or delete that folder"
            )
        return _finish(index, output)


def _find_index(output: OutputStore) -> ShardIndex | None:
    data = output.read(INDEX_NAME)
    return parse_index(data, f"{output.root}/{INDEX_NAME}", output.root) if data else None


def _matches(index: ShardIndex, source: str, seed: int, samples: int | None) -> bool:
    """Compare existing shards with a request, as far as that is possible without the raw data."""
    return (index.source, index.seed) == (source, seed) and all(
        set(split.shard_lengths[:-1]) <= {samples} and samples is not None and split.shard_lengths[-1] <= samples
        for split in index.splits.values()
    )


def _finish(index: ShardIndex, output: OutputStore) -> ShardIndex:
    """Return an index whose shards are all there; remove what makers needed until it was written."""
    output.prepare()
    sizes = output.sizes()
    index.check_files(sizes)
    sidecars = (shard.name + SUFFIX for shard in index.shards())
    output.remove_all(name for name in sidecars if name in sizes)
    return index


def _concurrent_index(wanted: ShardSet, output: OutputStore) -> ShardIndex | None:
    """Return the index of another maker that finished while this one read its data.

    Raises:
        ShardError: there is a tar with a name of ours, and no sidecar or index lists it.
    """
    prefix = f"{wanted.raw.name}-"
    tars = sorted(name for name in output.sizes() if name.startswith(prefix) and name.endswith(".tar"))
    # Listed again: a listing may miss a sidecar, but not the tar behind it, written while it was made.
    listed = output.sizes()
    unknown = [name for name in tars if name + SUFFIX not in listed]
    # Read after the listings: makers write the index before they remove their sidecars.
    index = _find_index(output)
    if index is None and unknown:
        raise ShardError(
            f"{output.root} already holds {unknown[0]}, which no {INDEX_NAME} there lists: "
            "choose another --out, or remove it and its like"
        )
    return index


def _finished_shards(wanted: ShardSet, output: OutputStore) -> dict[str, Sidecar]:
    """Return the sidecars of the shards that an interrupted maker has finished, by the shard's name.

    Raises:
        ShardError: a sidecar is of another data set, or cannot be read.
    """
    sizes = output.sizes()
    prefix = f"{wanted.raw.name}-"
    names = [name for name in sizes if name.startswith(prefix) and name.endswith(f".tar{SUFFIX}")]
    finished = {}
    for name, data in zip(names, output.read_all(names), strict=True):
        if not data:
            continue  # a concurrent maker has finished, and removed it
        fix = "; delete that folder, or choose another --out"
        with reported(f"cannot read {output.root}/{name}", ValidationError, fix):
            sidecar = Sidecar.model_validate_json(data)
        if sidecar.fingerprint != wanted.fingerprint:
            raise ShardError(
                f"{output.root} already holds an unfinished set of other shards: "
                "choose another --out or delete that folder"
            )
        # Its maker may have been interrupted before the shard was in its place.
        if sizes.get(sidecar.shard.name) == sidecar.shard.size:
            finished[sidecar.shard.name] = sidecar
    return finished


def _write_missing(wanted: ShardSet, output: OutputStore, workers: int, progress: bool) -> dict[str, Sidecar]:
    """Write the shards that are not finished; return the sidecars of all by the shard's name."""
    from webdataset import TarWriter  # imports torch, which reading and verifying do without

    def write(plan: ShardPlan) -> Sidecar:
        path = output.staging_dir / plan.name
        with reported(f"cannot write {path}"):
            with open(path, "wb") as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
                statistics = wanted.write(tar, plan)
            shard = Shard(plan.name, len(plan.numbers), checksum(path, "sha256"), path.stat().st_size)
        return Sidecar(fingerprint=wanted.fingerprint, shard=shard, statistics=statistics)

    finished = _finished_shards(wanted, output)
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
            output.write(sidecar.shard.name + SUFFIX, f"{sidecar.model_dump_json()}\n".encode())
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
        class_titles=raw.class_titles,
        splits={name: ShardSplit.of(name, rows) for name, rows in shards.items()},
        root=output.root,
    )
