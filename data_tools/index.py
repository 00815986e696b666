"""The index of a data set in shards: ``_info.json``, after timm's conventions, plus sizes and checksums."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.errors import ShardError
from data_tools.files import atomic_writer
from data_tools.location import INDEX_NAME, Location, locate
from data_tools.schema import SINCE_VERSION_2, VERSION, check_index

LARGEST_INDEX = 64 * 2**20  # bytes; a hundred thousand shards take 20 MB


class Shard(NamedTuple):
    """One row of a split: file name, number of samples, SHA-256 and bytes."""

    name: str
    length: int
    sha256: str
    size: int


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

    def keep(self, names: frozenset[str]) -> "ShardSplit":
        """Return the split with only the shards named."""
        kept = [number for number, name in enumerate(self.filenames) if name in names]
        columns = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return ShardSplit(*(tuple(column[number] for number in kept) for column in columns))

    def __iter__(self) -> Iterator[Shard]:
        return map(Shard, self.filenames, self.shard_lengths, self.sha256, self.sizes)


@dataclass(frozen=True)
class ShardIndex:
    """All that is known of a data set in shards without opening one.

    ``format`` is ``files`` (encoded images) or ``raw`` (arrays of pixels; all images have one shape).
    ``image_shape`` is (C, H, W), or None if the images differ in size (they are then read as RGB).
    ``mean`` and ``std`` are per channel, of pixels in [0, 1], measured on the train split.
    ``fingerprint`` tells the content from that of other data sets; ``seed`` is that of the shuffle.
    ``class_titles`` are readable names where ``class_names`` are codes, or nothing.
    ``root`` is the folder (a Path) or the URL (a text) it was read from; it is not stored.
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
    root: Path | str
    format: str = "files"
    class_titles: tuple[str, ...] = ()

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

    def restrict(self, location: Location) -> "ShardIndex":
        """Return the index with only those shards in every split of which ``location`` names any.

        Raises:
            ShardError: it names a shard that is not listed.
        """
        names = location.names
        if names is None:
            return self
        unknown = sorted(names - {shard.name for split in self.splits.values() for shard in split})
        if unknown:
            raise ShardError(f"{location} names {unknown[0]}, which {INDEX_NAME} there does not list")
        splits = {
            name: split.keep(names) if names & set(split.filenames) else split
            for name, split in self.splits.items()
        }
        return dataclasses.replace(self, splits=splits)

    def check_files(self) -> None:
        """Check that every shard is in the local folder with the size it had when it was made.

        Raises:
            ShardError: names the first shard that is missing or of another size.
        """
        with os.scandir(self.root) as entries:
            self.check_sizes({entry.name: entry.stat().st_size for entry in entries if entry.is_file()})

    def check_sizes(self, found: Mapping[str, int]) -> None:
        """Check the sizes ``found`` of the files beside the index; as ``check_files``."""
        for shard in (shard for split in self.splits.values() for shard in split):
            place = f"{self.root}/{shard.name}"
            if shard.name not in found:
                raise ShardError(f"missing shard {place}: {INDEX_NAME} lists it; make or copy it again")
            if found[shard.name] != shard.size:
                raise ShardError(
                    f"damaged shard {place}: found {found[shard.name]} bytes, expected {shard.size}; "
                    "make or copy it again"
                )


def read_index(location: str | Path) -> ShardIndex:
    """Read the index of a local folder, of an ``_info.json``, or of tars.

    Tars are given as ``FOLDER/X-{000000..000004}.tar``. Every split that they touch is then restricted
    to those named; other splits stay.

    Raises:
        ShardError: no such folder, no index, or an index that cannot be right.
    """
    found = locate(str(location))
    folder = Path(found.folder).expanduser()
    path = folder / INDEX_NAME
    if not folder.is_dir():
        raise ShardError(f"no such folder: {folder}")
    if not path.is_file():
        raise ShardError(f"no {INDEX_NAME} in {folder}: make shards there with dist-prune shards make")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShardError(f"cannot read {path}: {error.strerror}") from error
    return parse_index(content, str(path), folder).restrict(found)


def format_index(index: ShardIndex) -> bytes:
    """Return the content of the ``_info.json`` of an index."""
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
    plain = [key.name for key in dataclasses.fields(index) if key.name not in ("splits", "root")]
    content = {"version": VERSION} | {key: getattr(index, key) for key in plain} | {"splits": splits}
    return (json.dumps(content, indent=1) + "\n").encode()


def write_index(index: ShardIndex) -> None:
    """Write an index into its local folder, whole or not at all."""
    with atomic_writer(Path(index.root) / INDEX_NAME) as file:
        file.write(format_index(index))


def parse_index(data: bytes, path: str, root: Path | str) -> ShardIndex:
    """Return the index that ``data``, the content of ``path``, holds; ``root`` is where its shards lie.

    Raises:
        ShardError: it is no index, or one that cannot be right.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"cannot read {path}: {error}; make the shards again") from error
    if isinstance(content, dict) and content.get("version") == 1:
        content = SINCE_VERSION_2 | content
    problem = check_index(content)
    if problem:
        raise ShardError(f"{path} is no index of shards: {problem}; make the shards again")
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
        splits={name: _parse_split(split) for name, split in content["splits"].items()},
        root=root,
        format=content["format"],
        class_titles=tuple(content["class_titles"]),
    )


def _parse_split(split: dict[str, Any]) -> ShardSplit:
    return ShardSplit(*(tuple(split[key]) for key in ("filenames", "shard_lengths", "sha256", "bytes")))
