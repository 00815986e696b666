"""Writes a data set as WebDataset shards: shuffled once, checked, atomic, the same bytes every time."""

import hashlib
from pathlib import Path

import numpy as np
from tqdm import tqdm
from webdataset import TarWriter

from data_tools.errors import ShardError
from data_tools.files import atomic_writer
from data_tools.images import ImageError
from data_tools.index import INDEX_NAME, ShardIndex, ShardSplit, read_index, write_index
from data_tools.sources import find_source
from data_tools.sources.base import RawData, RawSplit
from data_tools.statistics import ImageStatistics


def make_shards(
    source: str,
    folder: str | Path | None,
    out: str | Path,
    *,
    samples_per_shard: int | None = None,
    seed: int = 0,
    test_fraction: float | None = None,
    progress: bool = False,
) -> ShardIndex:
    """Write the shards and the index of a data set into the folder ``out``.

    If ``out`` already holds just these shards, complete, they stay as they are.

    Args:
        source: a key of ``SOURCES``.
        folder: where the raw files lie; None for data sets that can be had without.
        out: made if missing.
        samples_per_shard: 1,000 unless given (``digits``: 360).
        seed: of the one shuffle, from 0 up.
        test_fraction: part of the train images to set aside if an image folder has no test images.
        progress: show a bar.

    Raises:
        ShardError: raw data missing or damaged, ``out`` holding something else, or not writable.
    """
    reader = find_source(source)
    per_shard = reader.samples_per_shard if samples_per_shard is None else samples_per_shard
    if per_shard < 1 or seed < 0:
        raise ShardError(f"samples per shard ({per_shard}) start at 1 and seeds ({seed}) at 0")
    out = Path(out).expanduser()
    found = read_index(out) if (out / INDEX_NAME).exists() else None
    if found and folder is None and _was_asked_for(found, source, seed, per_shard):
        return found
    raw = reader.read(None if folder is None else Path(folder).expanduser(), test_fraction)
    orders = {name: _shuffled(split, seed) for name, split in raw.splits.items()}
    fingerprint = _fingerprint(raw, orders, per_shard)
    if found:
        return _existing(found, fingerprint)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"cannot make the folder {out}: {error.strerror}") from error

    statistics = ImageStatistics()
    total = sum(len(order) for order in orders.values())
    with tqdm(total=total, unit=" images", desc=raw.name, disable=not progress) as bar:
        splits = {
            name: _write_split(raw, name, orders[name], out, per_shard, statistics, bar)
            for name in raw.splits
        }
    mean, std = statistics.mean_and_std
    shape = statistics.image_shape
    index = ShardIndex(raw.name, source, seed, fingerprint, raw.class_names, shape, mean, std, splits, out)
    write_index(index)
    return index


def _shuffled(split: RawSplit, seed: int) -> list[int]:
    # RandomState's streams are frozen: the same shards with every version of numpy.
    return np.random.RandomState(seed).permutation(len(split.labels)).tolist()


def _fingerprint(raw: RawData, orders: dict[str, list[int]], per_shard: int) -> str:
    """Return a hash of all that decides what the shards will hold, without reading image files."""
    digest = hashlib.sha256(repr((raw.name, raw.class_names, per_shard)).encode())
    for name, split in raw.splits.items():
        digest.update(name.encode())
        for number in orders[name]:
            digest.update(f"{split.identity(number)} {split.labels[number]}\n".encode())
    return digest.hexdigest()


def _was_asked_for(index: ShardIndex, source: str, seed: int, per_shard: int) -> bool:
    """Whether shards of a data set that needs no folder are the ones asked for: a rerun needs no network."""
    if (index.source, index.seed) != (source, seed):
        return False
    index.check_files()
    return all(
        set(split.shard_lengths[:-1]) <= {per_shard} and split.shard_lengths[-1] <= per_shard
        for split in index.splits.values()
    )


def _existing(index: ShardIndex, fingerprint: str) -> ShardIndex:
    """Return the shards that are there already, if they are the ones asked for."""
    if index.fingerprint != fingerprint:
        raise ShardError(
            f"{index.root} already holds other shards ({index.name} from {index.source}, seed {index.seed}): "
            "choose another --out or delete that folder"
        )
    index.check_files()
    return index


def _write_split(
    raw: RawData,
    name: str,
    order: list[int],
    out: Path,
    per_shard: int,
    statistics: ImageStatistics,
    bar: "tqdm[None]",
) -> ShardSplit:
    columns = []
    for number, start in enumerate(range(0, len(order), per_shard)):
        path = out / f"{raw.name}-{name}-{number:06d}.tar"
        part = order[start : start + per_shard]
        with atomic_writer(path) as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for position, chosen in enumerate(part, start):
                sample, label = raw.splits[name], raw.splits[name].labels[chosen]
                data, extension = sample.read(chosen)
                try:
                    statistics.add(data, measure=name == "train")
                except ImageError as error:
                    raise ShardError(f"{sample.origin(chosen)}: {error}; replace or remove it") from error
                key = f"{name}-{position:08d}"
                tar.write({"__key__": key, extension: data, "cls": str(label).encode()})
                bar.update()
        columns.append((path.name, len(part), file.sha256, file.size))
    names, lengths, hashes, sizes = zip(*columns, strict=True)
    return ShardSplit(names, lengths, hashes, sizes)
