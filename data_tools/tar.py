"""The members of an uncompressed tar, from its headers alone: nothing is extracted."""

import os
import re
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512  # bytes; what tars are made of


class Member(NamedTuple):
    """A file in a tar; its bytes begin at ``offset``."""

    name: str
    offset: int
    size: int


def members(file: IO[bytes]) -> Iterator[Member]:
    """Read the headers of a tar that holds nothing but plain files, as those of our writers do.

    Every worker does this for all shards that its rank reads in an epoch; ``tarfile`` takes three times
    as long for it. And a stranger's tar can make ``tarfile`` allocate what no file holds.

    Raises:
        ValueError: the tar is cut, a header is damaged, or a member is no plain file.
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


def _is_sound(header: bytes) -> bool:
    """Whether a header is whole: its checksum counts every byte, its own field as blanks."""
    own = header[148:156]
    return len(header) == BLOCK and _sum(header) - sum(own) + 8 * ord(" ") == _number(own)


def _sum(header: bytes) -> int:
    """Return the sum of all bytes, in a tenth of the time that Python takes for it.

    The lower half of an Adler-32 is their sum and 1, as long as that is below 65521: of 256 bytes it is.
    """
    return sum((zlib.adler32(header[at : at + 256]) & 0xFFFF) - 1 for at in range(0, BLOCK, 256))


def _number(field: bytes) -> int:
    """Return an octal number, or -1 for anything else."""
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else -1
