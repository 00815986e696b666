"""What is inside of one shard, and what is wrong with it."""

import io
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from data_tools.images import ImageError, decode_image
from data_tools.index import Shard, ShardIndex

LARGEST_IMAGE = 256 * 2**20  # encoded bytes
IMAGES = frozenset(["jpg", "png"])
LABEL = "cls"
RAW = ("images.npy", "labels.npy")
LONGEST_LABEL = 9  # digits
BLOCK = 512


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
    with open(path, "rb") as file:
        members = _members(file, contents.problems)
        check = _check_raw if index.format == "raw" else _check_files
        check(members, index, shard, contents)
    return contents


_Members = Iterator[tuple[str, bytes]]


def _members(file: IO[bytes], problems: list[str]) -> _Members:
    """Yield name and content of every member; add to ``problems`` if the tar does not end as it should."""
    behind = "its beginning"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is None:
                    problems.append(f"{member.name} is no plain file")
                else:
                    yield member.name, stream.read()
                behind = member.name
            # tarfile takes a damaged header for the end.
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("neither a header nor the end mark")
    except tarfile.TarError as error:
        problems.append(f"the tar is damaged or cut off behind {behind} ({error})")


def _check_files(members: _Members, index: ShardIndex, shard: Shard, contents: Contents) -> None:
    seen: set[str] = set()
    for key, parts in _samples(members):
        contents.keys.append(key)
        found = [*_sample_problems(parts, index), *(["its key comes twice"] if key in seen else [])]
        contents.problems += [f"sample {key}: {problem}" for problem in found]
        seen.add(key)
    _check_length(len(contents.keys), shard, contents)


def _samples(members: _Members) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Group consecutive members of one key; a part that comes again begins another sample."""
    key, parts = "", dict[str, bytes]()
    for name, data in members:
        stem, _, extension = name.partition(".")
        if parts and (stem != key or extension in parts):
            yield key, parts
            parts = {}
        key, parts[extension] = stem, data
    if parts:
        yield key, parts


def _sample_problems(parts: dict[str, bytes], index: ShardIndex) -> Iterator[str]:
    images = [data for extension, data in parts.items() if extension in IMAGES]
    if len(images) != 1:
        yield f"{len(images)} images where one is expected"
    for data in images:
        yield from _image_problems(data, index)
    text = parts.get(LABEL, b"")
    if not text.isdigit() or len(text) > LONGEST_LABEL or int(text) >= len(index.class_names):
        shown = text.decode(errors="replace")[:20]
        yield f"label {shown!r} is none of the classes 0 to {len(index.class_names) - 1}"
    for extension in parts.keys() - IMAGES - {LABEL}:
        yield f"member .{extension} is neither an image nor a label"


def _image_problems(data: bytes, index: ShardIndex) -> Iterator[str]:
    if len(data) > LARGEST_IMAGE:
        yield f"an image of {len(data)} bytes"
        return
    try:
        image = decode_image(data, index.channels)
    except ImageError as error:
        yield str(error)
        return
    size = (index.channels, image.height, image.width)
    if index.image_shape and size != index.image_shape:
        yield f"the image has the shape {size} where the index says {index.image_shape}"


def _check_raw(members: _Members, index: ShardIndex, shard: Shard, contents: Contents) -> None:
    held = list(members)
    names = sorted(name for name, _ in held)
    key = names[0].partition(".")[0] if names else ""
    if names != [f"{key}.{part}" for part in RAW]:
        shown = ", ".join(names) or "nothing"
        contents.problems.append(f"it holds {shown} where KEY.{RAW[0]} and KEY.{RAW[1]} are expected")
        return
    (_, images_data), (_, labels_data) = sorted(held)
    contents.keys.append(key)
    assert index.image_shape is not None, "the schema asks for it"
    channels, height, width = index.image_shape
    images = _load(images_data, "|u1", (height, width, channels), contents)
    labels = _load(labels_data, "<i8", (), contents)
    if images is None or labels is None:
        return
    if len(images) != len(labels):
        contents.problems.append(f"{len(images)} images and {len(labels)} labels")
    _check_length(len(images), shard, contents)
    classes = len(index.class_names)
    for row in np.flatnonzero((labels < 0) | (labels >= classes)):
        contents.problems.append(
            f"sample {row}: label {labels[row]} is none of the classes 0 to {classes - 1}"
        )


def _load(data: bytes, kind: str, shape: tuple[int, ...], contents: Contents) -> np.ndarray | None:
    """Return the array of an npy file whose rows must be of one kind and shape; executes no pickle."""
    stream = io.BytesIO(data)
    try:
        np.lib.format.read_magic(stream)
        found, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy lets errors of Python's parser through
        contents.problems.append(f"an array that cannot be read ({error})")
        return None
    if dtype.str != kind or found[1:] != shape or len(found) != len(shape) + 1:
        expected = ("N", *shape)
        contents.problems.append(f"an array of {dtype.str} {found} where {kind} {expected} is expected")
        return None
    expected_bytes = math.prod(found) * dtype.itemsize
    if len(data) - stream.tell() != expected_bytes:
        contents.problems.append(
            f"an array of {len(data) - stream.tell()} bytes where {expected_bytes} belong"
        )
        return None
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(found)


def _check_length(found: int, shard: Shard, contents: Contents) -> None:
    if found != shard.length:
        contents.problems.append(f"{found} samples where the index says {shard.length}")
