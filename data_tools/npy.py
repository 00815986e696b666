"""Arrays in numpy's file format 1.0, written into a tar and mapped where they lie there."""

import io
import math
from typing import IO

import numpy as np

from data_tools.tar import Member

HEADER_BYTES = 128  # of the arrays written here
LONGEST_REASON = 100  # characters: numpy repeats the whole header, which may be a stranger's


def format_array(array: np.ndarray) -> memoryview:
    """Return the content of an ``npy`` file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getbuffer()


def map_array(file: IO[bytes], member: Member, dtype: np.dtype, dimensions: int) -> np.ndarray:
    """Map an array that ``format_array`` or ``numpy.save`` wrote, for reading only; nothing is unpickled.

    Raises:
        ValueError: it is of another type or number of dimensions, or not as large as its header says.
    """
    file.seek(member.offset)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not numpy's format 1.0")
        shape, fortran_order, found = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # numpy lets errors of Python's own parser through
        raise ValueError(
            f"{member.name} cannot be read as an array ({str(error)[:LONGEST_REASON]})"
        ) from error
    if (found, len(shape)) != (dtype, dimensions) or fortran_order:
        order = ", in Fortran's order" if fortran_order else ""
        raise ValueError(
            f"{member.name} holds {found} in {len(shape)} dimensions{order}, not {dtype} in {dimensions}"
        )
    begin, size = file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape) < 1 or begin + size != member.offset + member.size:
        raise ValueError(f"{member.name} has not the size of its array")
    return np.asarray(np.memmap(file, dtype, "r", begin, shape))
