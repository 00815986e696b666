"""Shards of pixels in arrays, which earlier versions of this project wrote and no longer read, to convert them."""

import math
import re
from pathlib import Path
from typing import IO, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from data_tools import tar
from data_tools.errors import ShardError, reported
from data_tools.index import INDEX_NAME, ShardSplit, Text
from data_tools.sources.base import ArraySplit, RawData, ReadOptions, read_file

PARTS = ("images.npy", "labels.npy")  # extensions of the two members of a shard
LONGEST_REASON = 100  # characters: numpy quotes the whole header, which may be hostile


class _RawIndex(BaseModel):
    """What is needed of an ``_info.json`` of versions 1 to 3."""

    format: Literal["raw"]
    name: Text
    class_names: tuple[Text, ...] = Field(min_length=1)
    class_titles: tuple[Text, ...] = ()
    splits: dict[str, ShardSplit] = Field(min_length=1)


def read_raw(folder: Path | None, options: ReadOptions) -> RawData:
    """List the images in the two arrays of each shard, which stay where they are.

    Those are ``KEY.images.npy``, uint8 (N, H, W, C), and ``KEY.labels.npy``, int64 (N,).
    """
    if folder is None:
        raise ShardError("raw needs a folder: dist-prune shards make raw FOLDER --out DIR")
    path = folder / INDEX_NAME if folder.is_dir() else folder
    with reported(f"{path} is no index of raw shards", ValidationError):
        index = _RawIndex.model_validate_json(read_file(path))
    splits = {}
    for name, split in index.splits.items():
        images: list[np.ndarray] = []
        labels: list[int] = []
        for file, length in zip(split.filenames, split.shard_lengths, strict=True):
            place = path.parent / file
            with reported(f"damaged shard {place}", (OSError, ValueError), fix="; copy it again"):
                pixels, numbers = _arrays(place, length, len(index.class_names))
            images += list(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            labels += numbers.tolist()
        splits[name] = ArraySplit(f"{index.name} {name}", images, labels)
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", index.name)
    return RawData(name, index.class_names, splits, index.class_titles)


def _arrays(path: Path, length: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Map the images of a shard, and its labels; a ValueError if it holds anything else. Nothing is unpickled."""
    with open(path, "rb", buffering=0) as file:
        held = {tar.split_name(member.name)[1]: member for member in tar.members(file)}
        if set(held) != set(PARTS):
            raise ValueError(f"expected two members KEY.{PARTS[0]} and KEY.{PARTS[1]}")
        images = _map_array(file, held[PARTS[0]], np.dtype(np.uint8), 4)
        labels = _map_array(file, held[PARTS[1]], np.dtype(np.int64), 1)
    if len(images) != length or len(labels) != length or images.shape[-1] not in (1, 3):
        raise ValueError(f"{len(images)} images of shape {images.shape[1:]} and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, classes are 0 to {classes - 1}")
    return images, labels


def _map_array(file: IO[bytes], member: tar.Member, dtype: np.dtype, dimensions: int) -> np.ndarray:
    file.seek(member.offset)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not numpy's format 1.0")
        shape, fortran_order, found = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy passes on the errors of Python's own parser
        raise ValueError(f"{member.name} cannot be read as an array ({str(error)[:LONGEST_REASON]})") from error
    if (found, len(shape), fortran_order) != (dtype, dimensions, False):
        raise ValueError(f"{member.name} holds {found} in {len(shape)} dimensions, not {dtype} in {dimensions}")
    begin = file.tell()
    if min(shape) < 1 or begin + math.prod(shape) * dtype.itemsize != member.offset + member.size:
        raise ValueError(f"{member.name} has not the size of its array")
    return np.asarray(np.memmap(file, dtype, "r", begin, shape))
