"""ImageNet as Hugging Face exports it: parquet files with the columns ``image`` and ``label``."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from data_tools.errors import ShardError, reported
from data_tools.sources.base import PackedSplit, RawData, ReadOptions

TEST_SPLITS = ("validation", "val", "valid")
ROWS_AT_ONCE = 256


def find_parquet(folder: Path) -> dict[str, list[Path]]:
    """Return the parquet files of ``train`` and ``test`` in a folder or its ``data``; nothing if none."""
    for place in (folder, folder / "data"):
        found = {split: sorted(place.glob(f"{split}-*.parquet")) for split in ("train", *TEST_SPLITS)}
        test = [paths for split, paths in found.items() if paths and split in TEST_SPLITS]
        if found["train"] and test:
            return {"train": found["train"], "test": test[0]}
    return {}


def read_parquet(folder: Path, paths: dict[str, list[Path]], options: ReadOptions) -> RawData:
    """Unpack the images of the files of each split into one temporary file, where each of them can be had."""
    with reported(f"cannot unpack {folder} to {options.scratch}"):
        options.scratch.mkdir(parents=True, exist_ok=True)
        spool = tempfile.TemporaryFile(dir=options.scratch)  # noqa: SIM115  gone when the splits are
        total = sum(path.stat().st_size for files in paths.values() for path in files)
        with tqdm(total=total, desc="unpacking", unit="B", unit_scale=True, disable=not options.progress) as bar:
            splits = {split: _unpack(files, spool, bar) for split, files in paths.items()}
        spool.flush()
    highest = max(max(split.labels) for split in splits.values())
    names = _class_names(paths["train"][0]) or tuple(map(str, range(highest + 1)))
    if highest >= len(names):
        raise ShardError(f"{folder} has labels up to {highest}, but names {len(names)} classes")
    return RawData("imagenet", names, splits)


def _unpack(paths: list[Path], spool: IO[bytes], bar: "tqdm[None]") -> PackedSplit:
    """Copy the images of some files to the end of ``spool``."""
    split = PackedSplit(spool)
    for path in paths:
        size = path.stat().st_size
        with _opened(path) as file:
            rows = file.metadata.num_rows
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=["image", "label"]):
                images = batch.column("image").field("bytes").to_pylist()
                for data, label in zip(images, batch.column("label").to_pylist(), strict=True):
                    if data is None or label is None or label < 0:
                        raise ShardError(f"{path}, row {number}: it has no image or no label")
                    split.add(f"{path.name}, row {number}", label, spool.tell(), len(data))
                    spool.write(data)
                    number += 1
                bar.update(size * len(images) / rows)
    if not split.labels:
        raise ShardError(f"{paths[0]} holds no images: get it again")
    return split


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a parquet file that has the two columns; turn what pyarrow raises into one line."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ShardError(f"{path} needs pyarrow: pip install 'dist-prune[parquet]'") from error
    reading = reported(f"cannot read {path}", pyarrow.ArrowException, fix="; get it again")
    with reading, parquet.ParquetFile(path) as file:
        kinds = {field.name: field.type for field in file.schema_arrow}
        image, label = kinds.get("image", pyarrow.null()), kinds.get("label", pyarrow.null())
        has_bytes = pyarrow.types.is_struct(image) and image.get_field_index("bytes") >= 0
        if not has_bytes or not pyarrow.types.is_integer(label):
            raise ShardError(
                f"{path} has the columns {', '.join(kinds)}: expected image (with bytes) and label (a number)"
            )
        yield file


def _class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes that Hugging Face wrote into a file, or nothing."""
    with _opened(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        return tuple(json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
