"""Data sets as the Hugging Face hub stores them: parquet files with a column of encoded images and one of labels."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from data_tools.errors import ShardError, reported
from data_tools.find import split_of
from data_tools.labels import FIELDS
from data_tools.sources.base import PackedSplit, RawSplit, ReadOptions, number_labels

ROWS_AT_ONCE = 256
PART = re.compile(r"-\d+-of-(\d+)")


class _Table(NamedTuple):
    """A parquet file that is open, and the names of its two columns."""

    file: Any
    image: str
    label: str


def find_parquet(folder: Path) -> dict[str, list[Path]]:
    """Return the parquet files below a folder, by the split in their names; nothing if there are none."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        splits.setdefault(split_of(str(path.relative_to(folder))), []).append(path)
    for split, paths in splits.items():
        places = sorted({str(path.parent) for path in paths})
        if len(places) > 1:
            raise ShardError(
                f"{split} has parquet files in {places[0]} and {places[1]}: name the folder of one data set"
            )
        parts = [int(part[1]) for path in paths if (part := PART.search(path.name))]
        if parts and set(parts) != {len(parts)}:
            raise ShardError(f"{places[0]} holds {len(parts)} of {parts[0]} parquet files of {split}: get the others")
    return splits


def unpack_parquet(
    folder: Path, paths: Mapping[str, Sequence[Path]], options: ReadOptions
) -> tuple[tuple[str, ...], dict[str, RawSplit]]:
    """Unpack the images of the files of each split into one temporary file, where each of them can be had.

    A split of which no image has a label, as in competitions, is left out; train must have some.

    Returns:
        The names of the classes, and the splits.
    """
    paths = {split: files for split, files in paths.items() if split == "train" or any(map(_has_labels, files))}
    splits: dict[str, RawSplit] = {}
    labels: dict[str, list[str]] = {}
    with reported(f"cannot unpack {folder} to {options.scratch}"):
        options.scratch.mkdir(parents=True, exist_ok=True)
        spool = tempfile.TemporaryFile(dir=options.scratch)  # noqa: SIM115  gone when the splits are
        total = sum(path.stat().st_size for files in paths.values() for path in files)
        with tqdm(total=total, desc="unpacking", unit="B", unit_scale=True, disable=not options.progress) as bar:
            for split, files in paths.items():
                splits[split], labels[split] = _unpack(files, spool, bar)
        spool.flush()
    if names := _class_names(paths["train"][0]):
        with reported(f"{folder} names {len(names)} classes", ValueError):  # of labels that are texts
            numbers = {split: list(map(int, of)) for split, of in labels.items()}
        if (highest := max(map(max, numbers.values()))) >= len(names):
            raise ShardError(f"{folder} has labels up to {highest}, but names {len(names)} classes")
    else:
        names, numbers = number_labels(labels, folder)
    for split, of in numbers.items():
        splits[split].labels = of
    return names, splits


def _unpack(paths: Sequence[Path], spool: IO[bytes], bar: "tqdm[None]") -> tuple[PackedSplit, list[str]]:
    """Copy the images of some files to the end of ``spool``; return them, and their labels."""
    split, found = PackedSplit(spool), []
    for path in paths:
        size = path.stat().st_size
        with _opened(path) as (file, image, label):
            rows = file.metadata.num_rows
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[image, label]):
                images, labels = batch.column(image).field("bytes").to_pylist(), batch.column(label).to_pylist()
                for data, of in zip(images, labels, strict=True):
                    if data is None or not _is_label(of):
                        raise ShardError(f"{path}, row {number}: it has no image or no label")
                    split.add(f"{path.name}, row {number}", 0, spool.tell(), len(data))
                    found.append(str(of))
                    spool.write(data)
                    number += 1
                bar.update(size * len(images) / rows)
    if not found:
        raise ShardError(f"{paths[0]} holds no images: get it again")
    return split, found


def _has_labels(path: Path) -> bool:
    with _opened(path) as (file, _, label):
        batches = file.iter_batches(2**16, columns=[label])
        return any(_is_label(value) for batch in batches for value in batch.column(label).to_pylist())


def _is_label(value: Any) -> bool:
    """Return False for the number -1 as well, which stands for no label."""
    return value not in (None, "") and not (isinstance(value, int) and value < 0)


@contextmanager
def _opened(path: Path) -> Iterator[_Table]:
    """Open a parquet file that has the two columns; turn what pyarrow raises into one line."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ShardError(f"{path} needs pyarrow: pip install 'dist-prune[parquet]'") from error
    reading = reported(f"cannot read {path}", pyarrow.ArrowException, fix="; get it again")
    with reading, parquet.ParquetFile(path) as file:
        yield _Table(file, *_columns(path, {field.name: field.type for field in file.schema_arrow}))


def _columns(path: Path, kinds: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    from pyarrow import types

    images = [name for name, kind in kinds.items() if types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    labels = [field for field in FIELDS if field in kinds][:1] or [name for name in kinds if name.endswith("label")]
    if len(labels) != 1 or not ("image" in images or len(images) == 1):
        raise ShardError(
            f"{path} has the columns {', '.join(kinds)}: expected image (with bytes) and label (a number or a name)"
        )
    kind = kinds[labels[0]]
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        several, decimals = types.is_nested(kind), types.is_floating(kind)
        why = "several labels of one image (multi-label)" if several else "regression" if decimals else "no classes"
        raise ShardError(f"{path}: {labels[0]} holds {kind}, {why}: expected one number or name for each image")
    return "image" if "image" in images else images[0], labels[0]


def _class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes that Hugging Face wrote into a file, or nothing."""
    with _opened(path) as (file, _, label):
        metadata = file.schema_arrow.metadata or {}
    try:
        return tuple(json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
