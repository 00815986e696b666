"""The index of a data set in shards: one model of ``_info.json``, after timm's conventions."""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from data_tools.errors import RawShardsError, ShardError, reported
from data_tools.images import MOST_PIXELS, SMALLEST_STD
from data_tools.labels import LabelRule
from data_tools.tar import BLOCK

INDEX_NAME = "_info.json"
LARGEST_INDEX = 64 * 2**20  # bytes; a hundred thousand shards take 20 MB
LARGEST_SHARD = 2**50  # bytes; sums of such sizes and lengths stay within 64 bits
SEEDS = 2**32  # numpy takes seeds from 0 to this, exclusive

Text = Annotated[str, Field(min_length=1)]
# Strict, or pydantic would take texts and truth values for numbers.
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST_SHARD)]
# A file at or below the index: no parent, nothing hidden, and nothing that a shell would understand.
TAR_NAME = r"^(?:[A-Za-z0-9_-][A-Za-z0-9_.+=@-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.+=@-]*\.tar$"
TarName = Annotated[str, Field(pattern=TAR_NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Mean = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Std = Annotated[float, Field(strict=True, ge=SMALLEST_STD, le=1, allow_inf_nan=False)]


def file_sizes(folder: str | Path) -> dict[str, int]:
    """Return name and size of every file of a local folder."""
    sizes = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            # Another process that makes the same shards may remove its sidecars in the meantime.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
    return sizes


class Shard(NamedTuple):
    """One row of a split: file name, number of samples, SHA-256 (None: never computed) and bytes."""

    name: TarName
    length: Count
    sha256: Sha256 | None
    size: Count

    def mismatch(self, path: Path) -> str | None:
        """Return how a file differs from the index in size or checksum; None if it does not.

        Raises:
            OSError: the file is missing or cannot be read.
        """
        found = path.stat().st_size
        if found != self.size:
            return f"found {found} bytes, expected {self.size}"
        same = self.sha256 is None or checksum(path, "sha256") == self.sha256
        return None if same else "its checksum differs from the index"


COLUMNS = ("filenames", "shard_lengths", "sha256", "sizes")  # of a split: the fields of its shards, in order


class ShardSplit(BaseModel):
    """The shards of one split, in order: file names, samples, SHA-256 and bytes of each."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    name: str = ""
    filenames: tuple[TarName, ...] = Field(min_length=1)
    shard_lengths: tuple[Count, ...]
    num_samples: int = Field(strict=True)
    sha256: tuple[Sha256 | None, ...]
    sizes: tuple[Count, ...] = Field(alias="bytes")

    @classmethod
    def of(cls, name: str, shards: Iterable[Shard]) -> "ShardSplit":
        """Return the split of these shards."""
        columns = dict(zip(COLUMNS, zip(*shards, strict=True), strict=True))
        return cls(name=name, num_samples=sum(columns["shard_lengths"]), **columns)

    @property
    def shards(self) -> list[Shard]:
        """The rows of the split."""
        return list(map(Shard, *(getattr(self, column) for column in COLUMNS)))

    @model_validator(mode="after")
    def _check_columns(self) -> "ShardSplit":
        if len({len(getattr(self, column)) for column in COLUMNS}) > 1:
            raise ValueError("its columns differ in length")
        if len(set(self.filenames)) < len(self.filenames):
            raise ValueError("it lists a file twice")
        if self.num_samples != sum(self.shard_lengths):
            raise ValueError(f"num_samples is {self.num_samples}, its shards hold {sum(self.shard_lengths)}")
        return self


class ShardIndex(BaseModel):
    """All that is known of a data set in shards without opening one."""

    model_config = ConfigDict(frozen=True)

    version: Literal[3] = 3
    name: Text
    source: Text
    # Of the one shuffle.
    seed: int = Field(strict=True, ge=0, lt=SEEDS)
    # Tells the content from that of other data sets.
    fingerprint: Text
    class_names: tuple[Text, ...] = Field(min_length=1)
    # (C, H, W), or None if the images differ in size: they are then read as RGB.
    image_shape: tuple[Literal[1, 3], Count, Count] | None
    # Per channel, of pixels in [0, 1], measured on the train split.
    mean: tuple[Mean, ...]
    std: tuple[Std, ...]
    # Readable names where ``class_names`` are codes, or nothing.
    class_titles: tuple[Text, ...]
    label: LabelRule = LabelRule()
    splits: dict[str, ShardSplit] = Field(min_length=1, max_length=100)
    # The folder (a Path) or the URL (a text) that the index was read from; it is not stored.
    root: Path | str = Field("", exclude=True)

    @property
    def channels(self) -> int:
        """Channels that images are read with: 1 (gray) or 3 (RGB)."""
        return self.image_shape[0] if self.image_shape else 3

    def split(self, name: str) -> ShardSplit:
        """Return a split."""
        if name not in self.splits:
            advice = "; name its tars as well ('FOLDER/{train,test}-*.tar'), or set eval_share=0.1 (in exact order)"
            hint = advice if name == "test" else ""
            raise ShardError(f"{self.root} has no split {name!r}: it has {', '.join(self.splits)}{hint}")
        return self.splits[name]

    def to_evaluate(self) -> "ShardIndex":
        """Return the index with only the split to evaluate on, as ``test``; ShardError if there are several others."""
        tested, *others = [name for name in ("test", "validation", *self.splits) if name in self.splits]
        if tested not in ("test", "validation") and others:
            raise ShardError(f"{self.root} has the splits {', '.join(self.splits)}: name the tars of one of them")
        return self.model_copy(update={"splits": {"test": self.splits[tested].model_copy(update={"name": "test"})}})

    def read_as(self, train: "ShardIndex") -> "ShardIndex":
        """Return the index of images that are read as those of ``train``: classes, colors, normalization.

        Raises:
            ShardError: it has classes that ``train`` has not, or colors.
        """
        if self.image_shape is None and train.channels == 1:
            raise ShardError(f"the images of {self.root} differ in size or have colors, those of {train.root} do not")
        return self.model_copy(
            update={
                "label": self.label if self.class_names == train.class_names else self._label_in(train),
                "image_shape": self.image_shape and (train.channels, *self.image_shape[1:]),
                **{key: getattr(train, key) for key in ("class_names", "class_titles", "mean", "std")},
            }
        )

    def _label_in(self, train: "ShardIndex") -> LabelRule:
        """Return the rule by which the labels here stand for the classes of ``train``: a small split lacks some."""
        are_numbers = self.class_names == tuple(map(str, range(len(self.class_names))))
        are_enough = len(self.class_names) <= len(train.class_names)
        if are_numbers and are_enough and self.label.by == train.label.by == "number":
            return self.label
        others = sorted(set(self.class_names) - set(train.class_names))
        if others or (self.label.by == "number" and not are_numbers):
            found = f"class {others[0]!r}" if others else "its classes in another order"
            raise ShardError(f"{self.root} has {found}, unlike {train.root}: images to evaluate on need its classes")
        return self.label.model_copy(update={"by": "name"})

    def shards(self) -> Iterator[Shard]:
        """Yield the shards of all splits."""
        return itertools.chain.from_iterable(split.shards for split in self.splits.values())

    def restrict(self, names: frozenset[str] | None, spec: object) -> "ShardIndex":
        """Return the index with only the shards ``names`` in each split that has any of them.

        Raises:
            ShardError: a name is not listed; the message quotes ``spec``, which named it.
        """
        if names is None:
            return self
        unknown = sorted(names - {shard.name for shard in self.shards()})
        if unknown:
            raise ShardError(f"{spec} names {unknown[0]}, which {INDEX_NAME} there does not list")
        splits = {}
        for name, split in self.splits.items():
            kept = [shard for shard in split.shards if shard.name in names]
            splits[name] = ShardSplit.of(name, kept) if kept else split
        return self.model_copy(update={"splits": splits})

    def check_files(self, sizes: Mapping[str, int] | None = None) -> None:
        """Check that each shard is there with its size, given the ``sizes`` of all files; a local folder is listed."""
        found = self._local_sizes() if sizes is None else sizes
        for shard in self.shards():
            path = f"{self.root}/{shard.name}"
            if shard.name not in found:
                raise ShardError(f"missing shard {path}: {INDEX_NAME} lists it; make or copy it again")
            if found[shard.name] != shard.size:
                raise ShardError(
                    f"damaged shard {path}: found {found[shard.name]} bytes, expected {shard.size}; "
                    "make or copy it again"
                )

    def _local_sizes(self) -> dict[str, int]:
        folders = {shard.name.rpartition("/")[0] for shard in self.shards()}
        sizes: dict[str, int] = {}
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                found = file_sizes(Path(self.root, folder))
                sizes |= {f"{folder}/{name}" if folder else name: size for name, size in found.items()}
        return sizes

    def to_json(self) -> bytes:
        """Return the content of the ``_info.json``."""
        return (json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n").encode()

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, content: Any, info: ValidationInfo) -> Any:
        if isinstance(content, dict) and content.get("format") == "raw":
            raise RawShardsError(
                f"{info.context} holds raw shards, which this version no longer reads; "
                f"convert them: dist-prune shards make raw {info.context} --out NEW_FOLDER"
            )
        # Earlier versions lack this key.
        if isinstance(content, dict) and content.get("version") in (1, 2):
            return {"class_titles": []} | content | {"version": 3}
        return content

    @model_validator(mode="after")
    def _check(self) -> "ShardIndex":
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class_names lists a name twice")
        if len(self.class_titles) not in (0, len(self.class_names)):
            raise ValueError("class_titles does not have one title for each class")
        if self.image_shape and self.image_shape[1] * self.image_shape[2] > MOST_PIXELS:
            raise ValueError(f"image_shape has more than {MOST_PIXELS} pixels")
        if (len(self.mean), len(self.std)) != (self.channels, self.channels):
            raise ValueError(f"mean and std need one number for each of the {self.channels} channels")
        for shard in self.shards():  # the header of each sample is a block
            if shard.length * BLOCK > shard.size:
                raise ValueError(f"{shard.name} has {shard.length} samples in {shard.size} bytes")
        # A network trained on one split must not be tested on its images.
        for (first, one), (second, other) in itertools.combinations(self.splits.items(), 2):
            for name in set(one.filenames) & set(other.filenames):
                raise ValueError(f"both {first!r} and {second!r} list {name}")
        return self


def checksum(path: Path, algorithm: str) -> str:
    """Return a checksum of a file, by one of hashlib's algorithms."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def parse_index(data: bytes, path: object, root: Path | str) -> ShardIndex:
    """Return the index in ``data``, the content of the file ``path``; its shards are in ``root``."""
    with reported(f"{path} is no index of shards", ValidationError, fix="; make the shards again"):
        index = ShardIndex.model_validate_json(data, context=root)
    return index.model_copy(update={"root": root})
