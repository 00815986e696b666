"""Shards that others made, as they may come: tars of every dialect, with odd members, and the lists that name them."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from random import Random
from typing import Any

from fuzz_material import Material
from fuzz_mutations import json_bytes, mutate_bytes, value

_BLOCK = 512
_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
_FOLDERS = ("", "./", "a/b/", "../", "/", "x" * 120 + "/", "é\u202e/", "a\n/", "__meta__/")
_TYPES = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S", b"Z", b"7")
_PAX = ("size", "path", "GNU.sparse.size", "GNU.sparse.map", "mtime", "hdrcharset", "linkpath", "comment")
# Fields of a header: (first byte, bytes).
_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155))
_LABELS = ("0", "1", "class1", "-1", "99999999999999999999", "", "0.5", "caption of an image", "\0", "[1]")


def write_shards(m: Material, folder: Path, chance: Random) -> Path:
    """Make one or two tars of the images of ``m``, and damage some."""
    folder.mkdir()
    for split in ("train", "val")[: chance.choice((1, 2, 2, 2))]:
        path = folder / f"{split}{chance.choice(('', '-000000', '_0'))}.tar"
        images = sorted((m.home / "images" / ("train" if split == "train" else "test")).rglob("*.png"))
        path.write_bytes(_tar(images, chance))
        if chance.random() < 0.5:
            path.write_bytes(_with_other_header(path.read_bytes(), chance))
        if chance.random() < 0.2:
            path.write_bytes(mutate_bytes(path.read_bytes(), chance))
    return folder


def _tar(images: list[Path], chance: Random) -> bytes:
    stream = io.BytesIO()
    prefix, label = chance.choice(_FOLDERS), chance.choice(("cls", "cls", "txt", "json", "JSON", "none"))
    extension = chance.choice(("png", "PNG", "jpg", "seg.png", "png.gz"))
    chosen = chance.choice(_FORMATS)
    with tarfile.open(fileobj=stream, mode="w", format=chosen, errors="surrogateescape") as tar:
        for number, image in enumerate(images):
            odd = chance.random() < 0.1
            _add(tar, f"{prefix}{number:04}.{extension}", image.read_bytes(), chance if odd else None)
            _add(tar, f"{prefix}{number:04}.{label}", _label(label, number, chance if odd else None), None)
            if odd:
                _add_odd(tar, f"{prefix}{number:04}", chance)
    return stream.getvalue()


def _label(kind: str, number: int, chance: Random | None) -> bytes:
    if kind.lower() == "json":
        content: Any = {chance.choice(("label", "cls", "other")) if chance else "label": number % 2}
        return json_bytes(content, chance) if chance else json.dumps(content).encode()
    return (chance.choice(_LABELS) if chance else str(number % 2)).encode()


def _add(tar: tarfile.TarFile, name: str, data: bytes, chance: Random | None) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    if chance and tar.format == tarfile.PAX_FORMAT:
        member.pax_headers = {chance.choice(_PAX): str(value(chance))[:300].encode(errors="replace").decode()}
    try:
        tar.addfile(member, io.BytesIO(data))
    except (ValueError, UnicodeError):  # a name that this dialect cannot hold
        tar.addfile(tarfile.TarInfo("x"))


def _add_odd(tar: tarfile.TarFile, name: str, chance: Random) -> None:
    member = tarfile.TarInfo(f"{name}.{chance.choice(('png', 'cls', 'json', 'npy', 'pyd', ''))}")
    member.type, member.linkname = chance.choice(_TYPES), chance.choice(("/etc/passwd", "../../x", name, ""))
    try:
        tar.addfile(member)
    except (ValueError, UnicodeError):
        tar.addfile(tarfile.TarInfo("x"))


def _with_other_header(data: bytes, chance: Random) -> bytes:
    """Change a field of one member's header, with the checksum that belongs to it."""
    content = bytearray(data)
    starts = [at for at in range(0, len(data), _BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not starts:
        return data
    at = chance.choice(starts)
    first, many = chance.choice(_FIELDS)
    new = chance.choice((
        chance.randbytes(many), b"7" * many, b"\x80" + b"\xff" * (many - 1), b"\xff" * many, b"\0" * many, b" " * many,
        str(value(chance)).encode(errors="replace")[:many].ljust(many, b"\0"),
    ))  # fmt: skip
    content[at + first : at + first + many] = new
    header = content[at : at + _BLOCK]
    if chance.random() < 0.9:
        header[148:156] = b" " * 8
        content[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(content)


def write_list(m: Material, folder: Path, chance: Random) -> str:
    """Copy the shards of ``m`` without their index, and name them by a damaged list, or a pattern; return where."""
    shutil.copytree(m.data, folder)
    (folder / "_info.json").unlink()
    tars = sorted(path.name for path in folder.glob("*.tar"))
    kind = chance.randrange(5)
    if kind == 0:  # timm
        splits = {
            split: {"filenames": [name for name in tars if split in name], "shard_lengths": [6, 6], "num_samples": 12}
            for split in ("train", "test")
        }
        (folder / "_info.json").write_bytes(json_bytes({"splits": splits}, chance))
        return str(folder / chance.choice(("", "_info.json")))
    if kind == 1:  # wids
        entries = [{"url": name, "nsamples": 6} for name in tars]
        content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": entries}
        (folder / "index.json").write_bytes(json_bytes(content, chance))
        return str(folder / "index.json")
    if kind == 2:
        lines = [*tars, *(str(value(chance))[:200] for _ in range(chance.randrange(3)))]
        chance.shuffle(lines)
        text = "\n".join(lines).encode("utf-8", errors="surrogatepass")
        (folder / "list.txt").write_bytes(mutate_bytes(text, chance) if chance.random() < 0.3 else text)
        return str(folder / "list.txt")
    if kind == 3:
        inner = chance.choice(
            ("{train,test}", "{000000..000001}", "{0..9999999}", "{" * 30 + "}" * 30, "*", "**", "[a-", "{a,b}" * 30)
        )
        return f"{folder}/{inner}{chance.choice(('-000000', '', '*'))}.tar"
    name = chance.choice(tars)
    odd = folder / f"{name[:-4]}{chance.choice(('.', 'é', chr(10), '::', ' ', chr(27)))}.tar"
    (folder / name).rename(odd)
    if chance.random() < 0.3:
        odd.unlink()
        chance.choice(
            (odd.mkdir, lambda: os.mkfifo(odd), lambda: odd.symlink_to("/dev/zero"), lambda: odd.symlink_to(odd))
        )()
    return str(folder)
