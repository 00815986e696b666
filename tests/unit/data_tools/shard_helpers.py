"""Small images and tars for the tests, and shards read back by the simplest means there are."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import read_index

REPOSITORY = Path(__file__).resolve().parents[3]


def encoded(number: int, size=(12, 10), mode="RGB", kind="JPEG") -> bytes:
    """An image of ``size`` (width, height) that no other number gives."""
    channels = () if mode == "L" else (3,)
    pixels = np.random.RandomState(number).randint(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


def write_image(path: Path, number: int, size=(12, 10), mode="RGB") -> bytes:
    data = encoded(number, size, mode, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def pack(path: Path, files, mode="w") -> Path:
    """A tar of files, given as a dictionary or as pairs of name and content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in dict(files).items() if isinstance(files, dict) else files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def members(folder: Path, split: str) -> dict[str, bytes]:
    """Name and content of all members of the shards of a split, in order."""
    found: dict[str, bytes] = {}
    for name in read_index(folder).splits[split].filenames:
        with tarfile.open(folder / name) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def files(folder: Path, split: str) -> list[tuple[bytes, int]]:
    """Encoded images and labels of a split, in order."""
    content = members(folder, split)
    images = [name for name in content if not name.endswith(".cls")]
    assert len(content) == 2 * len(images)
    return [(content[name], int(content[name.split(".")[0] + ".cls"])) for name in images]


def arrays(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, H, W, C) and labels (N,) of a split whose images have one size, in order."""
    found = files(folder, split)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data, _ in found])
    return pixels.reshape(*pixels.shape[:3], -1), np.array([label for _, label in found])


def multiset(pixels, labels) -> list[tuple[int, bytes]]:
    """Images with their labels, without their order."""
    return sorted((int(label), image.tobytes()) for image, label in zip(pixels, labels, strict=True))


def everything(folder: Path) -> dict[str, bytes]:
    """Name and content of every file in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def real_data(name: str) -> Path:
    """A file of real images that is not part of the repository; without it the test is skipped."""
    folder = Path(os.environ.get("DIST_PRUNE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}: DIST_PRUNE_TEST_DATA may name another folder")
    return folder / name
