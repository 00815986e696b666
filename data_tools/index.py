"""The index of a data set in shards: ``_info.json``, after timm's conventions, plus sizes and checksums."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import braceexpand

from data_tools.errors import ShardError
from data_tools.files import atomic_writer
from data_tools.schema import check_index

INDEX_NAME = "_info.json"


@dataclass(frozen=True)
class ShardSplit:
    """The shards of one split, in order: file names, samples, SHA-256 and bytes of each."""

    filenames: tuple[str, ...]
    shard_lengths: tuple[int, ...]
    sha256: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def num_samples(self) -> int:
        """Samples in all shards together."""
        return sum(self.shard_lengths)

    def keep(self, names: set[str]) -> "ShardSplit":
        """Return the split with only the shards named."""
        kept = [number for number, name in enumerate(self.filenames) if name in names]
        columns = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return ShardSplit(*(tuple(column[number] for number in kept) for column in columns))


@dataclass(frozen=True)
class ShardIndex:
    """All that is known of a data set in shards without opening one.

    ``image_shape`` is (C, H, W), or None if the images differ in size (they are then read as RGB).
    ``mean`` and ``std`` are per channel, of pixels in [0, 1], measured on the train split.
    ``fingerprint`` tells the content from that of other data sets; ``seed`` is that of the shuffle.
    ``root`` is the folder it was read from; it is not stored.
    """

    name: str
    source: str
    seed: int
    fingerprint: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: Mapping[str, ShardSplit]
    root: Path

    @property
    def channels(self) -> int:
        """Channels that images are read with: 1 (gray) or 3 (RGB)."""
        return self.image_shape[0] if self.image_shape else 3

    def split(self, name: str) -> ShardSplit:
        """Return a split.

        Raises:
            ShardError: there is none of that name.
        """
        if name not in self.splits:
            raise ShardError(f"{self.root} has no split {name!r}: it has {', '.join(self.splits)}")
        return self.splits[name]

    def check_files(self) -> None:
        """Check that every shard is there with the size it had when it was made.

        Raises:
            ShardError: names the first shard that is missing or of another size.
        """
        for split in self.splits.values():
            for name, size in zip(split.filenames, split.sizes, strict=True):
                path = self.root / name
                if not path.is_file():
                    raise ShardError(f"missing shard {path}: {INDEX_NAME} lists it; make or copy it again")
                found = path.stat().st_size
                if found != size:
                    raise ShardError(
                        f"damaged shard {path}: found {found} bytes, expected {size}; make or copy it again"
                    )


def read_index(location: str | Path) -> ShardIndex:
    """Read the index of a folder, of an ``_info.json``, or of tars.

    Tars are given as ``FOLDER/X-{000000..000004}.tar``. Every split that they touch is then restricted
    to those named; other splits stay.

    Raises:
        ShardError: no such folder, no index, or an index that cannot be right.
    """
    text = str(location)
    if text.endswith(".tar"):
        paths = [Path(name) for name in braceexpand.braceexpand(text)]
        folders = {path.parent for path in paths}
        if len(folders) > 1:
            raise ShardError(f"{text} names tars in {len(folders)} folders: one data set lies in one folder")
        return _restrict(_read_folder(folders.pop()), {path.name for path in paths}, text)
    path = Path(location).expanduser()
    return _read_folder(path.parent if path.name == INDEX_NAME else path)


def write_index(index: ShardIndex) -> None:
    """Write ``index`` into its folder, whole or not at all."""
    splits = {
        name: {
            "name": name,
            "filenames": split.filenames,
            "shard_lengths": split.shard_lengths,
            "num_samples": split.num_samples,
            "sha256": split.sha256,
            "bytes": split.sizes,
        }
        for name, split in index.splits.items()
    }
    plain = ("name", "source", "seed", "fingerprint", "class_names", "image_shape", "mean", "std")
    content = {"version": 1} | {key: getattr(index, key) for key in plain} | {"splits": splits}
    with atomic_writer(index.root / INDEX_NAME) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def _read_folder(folder: Path) -> ShardIndex:
    path = folder.expanduser() / INDEX_NAME
    if not path.parent.is_dir():
        raise ShardError(f"no such folder: {path.parent}")
    if not path.is_file():
        raise ShardError(f"no {INDEX_NAME} in {path.parent}: make shards there with dist-prune shards make")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShardError(f"cannot read {path}: {error}; make the shards again") from error
    problem = check_index(content)
    if problem:
        raise ShardError(f"{path} is no index of shards: {problem}; make the shards again")
    return _parse(content, path.parent)


def _parse(content: dict[str, Any], root: Path) -> ShardIndex:
    shape = content["image_shape"]
    return ShardIndex(
        name=content["name"],
        source=content["source"],
        seed=content["seed"],
        fingerprint=content["fingerprint"],
        class_names=tuple(content["class_names"]),
        image_shape=(shape[0], shape[1], shape[2]) if shape else None,
        mean=tuple(content["mean"]),
        std=tuple(content["std"]),
        splits={
            name: ShardSplit(
                *(tuple(split[key]) for key in ("filenames", "shard_lengths", "sha256", "bytes"))
            )
            for name, split in content["splits"].items()
        },
        root=root,
    )


def _restrict(index: ShardIndex, names: set[str], pattern: str) -> ShardIndex:
    known = {name for split in index.splits.values() for name in split.filenames}
    unknown = sorted(names - known)
    if unknown:
        raise ShardError(f"{pattern} names {unknown[0]}, which {index.root / INDEX_NAME} does not list")
    splits = {
        name: split.keep(names) if names & set(split.filenames) else split
        for name, split in index.splits.items()
    }
    return dataclasses.replace(index, splits=splits)
