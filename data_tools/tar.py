"""The content of shards, where it lies in the tar: nothing is extracted.

A shard holds encoded images with their labels, or one array of pixels and one of labels in numpy's file format.
"""

import io
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np

BLOCK = 512  # bytes; tars consist of blocks
IMAGES = ("jpg", "png")  # extensions of image members
LABEL = "cls"  # extension of label members
LARGEST_IMAGE = 256 * 2**20  # encoded bytes
LONGEST_LABEL = 32  # bytes; nothing longer can be a label
RAW = ("images.npy", "labels.npy")  # extensions of the two members of a raw shard
HEADER_BYTES = 128  # of the arrays written here
LONGEST_REASON = 100  # characters: numpy quotes the whole header, which may be hostile
SHOWN_NAMES = 4


class Member(NamedTuple):
    """A file in a tar; its bytes begin at ``offset``."""

    name: str
    offset: int
    size: int


Parts = dict[str, Member]  # the members of one key, by extension


def members(file: IO[bytes]) -> Iterator[Member]:
    """Read the headers of a tar of plain files.

    Each worker does this for all shards that its rank reads in an epoch; ``tarfile`` takes three times
    as long. Also, a hostile tar can make ``tarfile`` allocate memory that no file needs.

    Raises:
        ValueError: the tar is truncated, a header is damaged, or a member is no plain file.
    """
    length = os.fstat(file.fileno()).st_size
    offset = 0
    while offset < length:
        header = os.pread(file.fileno(), BLOCK, offset)
        if not any(header):  # the mark at the end
            return
        member = Member(member_name(header), offset + BLOCK, _number(header[124:136]))
        if member.size < 0 or not _is_sound(header):
            raise ValueError(f"no header of a tar member at byte {offset}")
        if header[156:157] not in (b"0", b"\0"):
            raise ValueError(f"{member.name} is no plain file")
        if member.offset + member.size > length:
            raise ValueError(f"it ends in the middle of {member.name}")
        yield member
        offset = member.offset + -(-member.size // BLOCK) * BLOCK


def member_name(header: bytes) -> str:
    """Return the name in the header of a member."""
    return header[:100].rstrip(b"\0").decode(errors="replace")


def samples(members: Iterable[Member]) -> Iterator[tuple[str, Parts]]:
    """Group consecutive members of one key, as WebDataset does; a repeated extension begins another sample.

    Groups without image and label, such as a README, are included; see ``is_sample``.
    """
    key, parts = "", Parts()
    for member in members:
        stem, extension = split_name(member.name)
        if parts and (stem != key or extension in parts):
            yield key, parts
            parts = {}
        key, parts[extension] = stem, member
    if parts:
        yield key, parts


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension: the parts before and after the first dot behind the last slash."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def is_sample(parts: Parts) -> bool:
    """Return True if a group counts as a sample, perhaps a broken one."""
    return LABEL in parts or bool(images_of(parts))


def images_of(parts: Parts) -> list[Member]:
    """Return the images of a sample; a valid sample has exactly one."""
    return [parts[extension] for extension in IMAGES if extension in parts]


def class_labels(classes: int) -> dict[str, int]:
    """Return the class numbers by their only valid spelling: ``1``, not ``01``."""
    return {str(label): label for label in range(classes)}


def no_class(label: str, classes: int) -> str:
    """Return the message for a label that is none of ``class_labels``."""
    return f"label {label[:20]!r} is none of the classes 0 to {classes - 1}"


def format_array(array: np.ndarray) -> memoryview:
    """Return the content of an ``npy`` file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getbuffer()


def map_arrays(file: IO[bytes], members: Iterable[Member]) -> tuple[np.ndarray, np.ndarray]:
    """Map the images (N, H, W, C), uint8, and the labels (N,), int64, of a raw shard, read-only.

    Raises:
        ValueError: the shard holds anything else; nothing is unpickled.
    """
    held = sorted(members)
    key = split_name(held[0].name)[0] if held else ""
    if [member.name for member in held] != [f"{key}.{part}" for part in RAW]:
        shown = ", ".join(member.name for member in held[:SHOWN_NAMES]) or "nothing"
        shown += f" and {len(held) - SHOWN_NAMES} more" if len(held) > SHOWN_NAMES else ""
        raise ValueError(f"it holds {shown} where KEY.{RAW[0]} and KEY.{RAW[1]} are expected")
    images = _map_array(file, held[0], np.dtype(np.uint8), 4)
    labels = _map_array(file, held[1], np.dtype(np.int64), 1)
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images and {len(labels)} labels")
    return images, labels


def _map_array(file: IO[bytes], member: Member, dtype: np.dtype, dimensions: int) -> np.ndarray:
    """Map an array that ``format_array`` or ``numpy.save`` wrote."""
    file.seek(member.offset)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not numpy's format 1.0")
        shape, fortran_order, found = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy passes on the errors of Python's own parser
        raise ValueError(f"{member.name} cannot be read as an array ({str(error)[:LONGEST_REASON]})") from error
    if (found, len(shape)) != (dtype, dimensions) or fortran_order:
        order = ", in Fortran's order" if fortran_order else ""
        raise ValueError(f"{member.name} holds {found} in {len(shape)} dimensions{order}, not {dtype} in {dimensions}")
    begin, size = file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape) < 1 or begin + size != member.offset + member.size:
        raise ValueError(f"{member.name} has not the size of its array")
    return np.asarray(np.memmap(file, dtype, "r", begin, shape))


def _is_sound(header: bytes) -> bool:
    """Compare a header with its checksum, which counts its own field as blanks."""
    own = header[148:156]
    return len(header) == BLOCK and _sum(header) - sum(own) + 8 * ord(" ") == _number(own)


def _sum(header: bytes) -> int:
    """Return the sum of all bytes, in a tenth of the time of Python's ``sum``.

    The lower half of an Adler-32 is 1 plus that sum, as long as it is below 65521: of 256 bytes it is.
    """
    return sum((zlib.adler32(header[at : at + 256]) & 0xFFFF) - 1 for at in range(0, BLOCK, 256))


def _number(field: bytes) -> int:
    """Return an octal number, or -1 for anything else."""
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else -1
