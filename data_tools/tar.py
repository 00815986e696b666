"""The content of shards, where it lies in the tar: nothing is extracted.

A shard holds encoded images with their labels, in a tar of any dialect, as WebDataset has them.
"""

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, NamedTuple, TypeVar

BLOCK = 512  # bytes; tars consist of blocks
IMAGES = ("jpg", "jpeg", "png", "webp")  # extensions of image members, in any case
LABEL = "cls"  # extension of label members, unless the index names another one
LARGEST_IMAGE = 256 * 2**20  # encoded bytes
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # first bytes of gzip, bzip2, xz, zstd
PLAIN = (b"0", b"\0", b"7")  # types of members that are files
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
PAX, PAX_OF_ALL, LONG_NAME, LONG_LINK, SPARSE = b"x", b"g", b"L", b"K", b"S"
LARGEST_PREFACE = 2**20  # bytes of what a PAX or GNU header says of the next member
SHOWN_BYTES = 20  # of what is damaged


class Member(NamedTuple):
    """A file in a tar; its bytes begin at ``offset``."""

    name: str
    offset: int
    size: int


Parts = dict[str, Member]  # the members of one key, by extension
Part = TypeVar("Part")


def members(file: IO[bytes]) -> Iterator[Member]:
    """Read the headers of a tar, of any dialect (v7, ustar, GNU, PAX), and yield its files.

    Folders, links and special files are passed over. Each worker does this for all shards that its rank reads in an
    epoch; ``tarfile`` takes three times as long. Also, a hostile tar can make ``tarfile`` allocate memory that no file
    needs.

    Raises:
        ValueError: the tar is truncated, a header is damaged, or a file is sparse.
    """
    length = os.fstat(file.fileno()).st_size
    offset = 0
    said: dict[str, str] = {}  # by a PAX or GNU header, of the next member
    while offset < length:
        header = os.pread(file.fileno(), BLOCK, offset)
        if not any(header):  # the mark at the end
            return
        kind, size = header[156:157], _number(header[124:136])
        if size < 0 or not _is_sound(header):
            raise ValueError(f"no header of a tar member at byte {offset}")
        offset += BLOCK
        is_preface = kind in (PAX, PAX_OF_ALL, LONG_NAME, LONG_LINK)
        name = member_name(header) if is_preface else said.get("path", member_name(header))
        if not is_preface:
            size = 0 if kind in WITHOUT_DATA else _decimal(said.get("size", str(size)), name)
        end = offset + -(-size // BLOCK) * BLOCK
        if end > length:
            raise ValueError(f"it ends in the middle of {name}")
        if kind in (PAX, LONG_NAME):
            if size > LARGEST_PREFACE:
                raise ValueError(f"the header {name} has {size} bytes")
            data = os.pread(file.fileno(), size, offset)
            said |= _pax_records(data) if kind == PAX else {"path": data.rstrip(b"\0").decode(errors="replace")}
        elif not is_preface:
            if kind == SPARSE or any(key.startswith("GNU.sparse") for key in said):
                raise ValueError(f"{name} is a sparse file")
            said = {}
            if kind in PLAIN and not name.endswith("/"):
                yield Member(name, offset, size)
        offset = end


def member_name(header: bytes) -> str:
    """Return the name in the header of a member."""
    name = header[:100].split(b"\0", 1)[0]
    # Only POSIX has the first part of a long name here; GNU has times.
    folder = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (folder + b"/" + name if folder else name).decode(errors="replace")


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the records ``LENGTH KEY=VALUE`` of a PAX header."""
    records, at = {}, 0
    while at < len(data):
        digits, blank, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        key, sign, value = record.removesuffix(b"\n").partition(b"=")
        if not (blank and sign and record.endswith(b"\n")):
            raise ValueError(f"a damaged PAX record {data[at : at + SHOWN_BYTES]!r}")
        records[key.decode(errors="replace")] = value.decode(errors="replace")
        at += length
    return records


def _decimal(text: str, name: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError(f"the size of {name} is {text[:SHOWN_BYTES]!r}")
    return int(text)


def samples(members: Iterable[Member]) -> Iterator[tuple[str, Parts]]:
    """Group consecutive members of one key, as WebDataset does; a repeated extension begins another sample.

    Groups without image and label are included; see ``is_sample``. What WebDataset passes over is left out: names
    without an extension, or with nothing before it, and its own ``__...__``.
    """
    key, parts = "", Parts()
    for member in members:
        stem, extension = split_name(member.name)
        if not extension or not stem.rpartition("/")[2] or re.fullmatch("__[^/]*__", member.name):
            continue
        if parts and (stem != key or extension in parts):
            yield key, parts
            parts = {}
        key, parts[extension] = stem, member
    if parts:
        yield key, parts


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension, in lower case: the parts before and after the first dot behind the last slash."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def is_sample(parts: Mapping[str, object], label: str = LABEL) -> bool:
    """Return True if a group counts as a sample, perhaps a broken one; ``label``: extension of label members."""
    return label in parts or bool(images_of(parts))


def images_of(parts: Mapping[str, Part]) -> list[Part]:
    """Return the images of a sample, whose parts are by extension; a valid sample has exactly one.

    That is ``KEY.jpg``, even beside a ``KEY.mask.png``; with no such member it is ``KEY.left.jpg``.
    """
    found = [parts[extension] for extension in IMAGES if extension in parts]
    return found or [member for extension, member in parts.items() if extension.rpartition(".")[2] in IMAGES]


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
    """Return an octal number, or one of GNU's in binary; -1 for anything else."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else -1
