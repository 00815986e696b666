"""What is inside of one shard, and what is wrong with it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from data_tools.images import ImageError, decode_image
from data_tools.index import Shard, ShardIndex
from data_tools.npy import map_array
from data_tools.samples import (
    IMAGES,
    LABEL,
    LARGEST_IMAGE,
    LONGEST_LABEL,
    Parts,
    class_labels,
    images_of,
    is_sample,
    no_class,
    raw_arrays,
    samples,
    split_name,
)
from data_tools.tar import Member, members


@dataclass
class Contents:
    """The keys of the samples in a shard, and its problems in words."""

    keys: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_contents(path: Path, index: ShardIndex, shard: Shard) -> Contents:
    """Read a whole shard: the structure of the tar, and every sample.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    contents = Contents()
    check = _check_raw if index.format == "raw" else _check_files
    try:
        with open(path, "rb", buffering=0) as file:
            check(file, index, shard, contents)
    except ValueError as error:  # of the tar, or of an array; nothing behind it can be looked at
        contents.problems.append(str(error))
    return contents


def _check_files(file: IO[bytes], index: ShardIndex, shard: Shard, contents: Contents) -> None:
    labels = class_labels(len(index.class_names))
    seen: set[str] = set()
    for key, parts in samples(members(file)):
        found = []
        if is_sample(parts):
            contents.keys.append(key)
            found += [*_image_problems(file, parts, index), *_label_problems(file, parts, labels)]
            found += ["its key comes twice"] if key in seen else []
            seen.add(key)
        for extension in parts.keys() - {*IMAGES, LABEL}:
            found.append(f"member .{extension} is neither an image nor a label")
        contents.problems += [f"sample {key}: {problem}" for problem in found]
    _check_length(len(contents.keys), shard, contents)


def _image_problems(file: IO[bytes], parts: Parts, index: ShardIndex) -> Iterator[str]:
    images = images_of(parts)
    if len(images) != 1:
        yield f"{len(images)} images where one is expected"
    for member in images:
        if member.size > LARGEST_IMAGE:
            yield f"an image of {member.size} bytes, {LARGEST_IMAGE} are allowed"
            continue
        try:
            image = decode_image(_read(file, member, LARGEST_IMAGE), index.channels)
        except ImageError as error:
            yield str(error)
            continue
        size = (index.channels, image.height, image.width)
        if index.image_shape and size != index.image_shape:
            yield f"the image has the shape {size} where the index says {index.image_shape}"


def _label_problems(file: IO[bytes], parts: Parts, labels: dict[str, int]) -> Iterator[str]:
    label = _read(file, parts[LABEL], LONGEST_LABEL).decode(errors="replace") if LABEL in parts else ""
    if label not in labels:
        yield no_class(label, len(labels))


def _read(file: IO[bytes], member: Member, limit: int) -> bytes:
    return os.pread(file.fileno(), min(member.size, limit), member.offset)


def _check_raw(file: IO[bytes], index: ShardIndex, shard: Shard, contents: Contents) -> None:
    held = raw_arrays(members(file))
    images = map_array(file, held[0], np.dtype(np.uint8), 4)
    labels = map_array(file, held[1], np.dtype(np.int64), 1)
    contents.keys.append(split_name(held[0].name)[0])
    height, width, channels = images.shape[1:]
    if (channels, height, width) != index.image_shape:
        contents.problems.append(
            f"the images have the shape {(channels, height, width)} where the index says {index.image_shape}"
        )
    if len(images) != len(labels):
        contents.problems.append(f"{len(images)} images and {len(labels)} labels")
    _check_length(len(images), shard, contents)
    classes = len(index.class_names)
    for row in np.flatnonzero((labels < 0) | (labels >= classes)):
        contents.problems.append(f"sample {row}: {no_class(str(labels[row]), classes)}")


def _check_length(found: int, shard: Shard, contents: Contents) -> None:
    if found != shard.length:
        contents.problems.append(f"{found} samples where the index says {shard.length}")
