"""Small shards, written here by hand: what the reader is held against is not our writer."""

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools import Shard, ShardIndex, read_index
from data_tools.index import INDEX_NAME, ShardSplit

CLASSES = 10


def numbered(count: int, height: int = 4, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Gray images (N, H, W, 1) that spell their number in base 256, and labels (N,)."""
    images = np.zeros((count, height, width, 1), np.uint8)
    for digit in range(2):
        images[:, 0, digit, 0] = np.arange(count) // 256**digit % 256
    return images, np.arange(count) % CLASSES


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, form, **options)
    return stream.getvalue()


def members_of(images: Sequence[np.ndarray], labels: np.ndarray, start: int) -> list:
    return [
        member
        for at, (image, label) in enumerate(zip(images, labels, strict=True), start)
        for member in ((f"train-{at:08d}.cls", b"%d" % label), (f"train-{at:08d}.png", encoded(image)))
    ]


def write_index(index: ShardIndex) -> None:
    (Path(index.root) / INDEX_NAME).write_bytes(index.to_json())


def make(
    folder: Path, splits: Mapping[str, tuple[Sequence[np.ndarray], np.ndarray, Sequence[int]]], same_shape: bool = True
) -> ShardIndex:
    """Write splits of (images, labels, samples of each shard) with their index; return it as it is read."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for split, (images, labels, lengths) in splits.items():
        shards, start = [], 0
        for number, length in enumerate(lengths):
            path = folder / f"toy-{split}-{number:06d}.tar"
            part = slice(start, start + length)
            write_tar(path, members_of(images[part], labels[part], start))
            data = path.read_bytes()
            shards.append(Shard(path.name, length, hashlib.sha256(data).hexdigest(), len(data)))
            start += length
        made[split] = ShardSplit.of(split, shards)
    height, width, channels = next(iter(splits.values()))[0][0].shape
    write_index(
        ShardIndex(
            name="toy",
            source="toy",
            seed=0,
            fingerprint="x",
            class_names=tuple("abcdefghij"),
            image_shape=(channels, height, width) if same_shape else None,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            splits=made,
            root=folder,
            class_titles=(),
        )
    )
    return read_index(folder)


def numbers(images: Any) -> list[int]:
    """The numbers that ``numbered`` images spell, from a batch (B, 1, H, W) that mean 0 and deviation 1 left."""
    pixels = (images[:, 0, 0, :2] * 255).round().long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()
