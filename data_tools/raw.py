"""The arrays of raw shards: pixels and labels in numpy's file format, mapped where they are in the tar."""

import io
import math
from collections.abc import Iterable
from typing import IO

import numpy as np

from data_tools.tar import Member, split_name

RAW = ("images.npy", "labels.npy")  # extensions of the two members of a shard
HEADER_BYTES = 128  # of the arrays written here
LONGEST_REASON = 100  # characters: numpy quotes the whole header, which may be hostile
SHOWN_NAMES = 4


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
