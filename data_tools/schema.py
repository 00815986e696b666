"""What an ``_info.json`` must look like; says what is wrong with one that does not."""

import itertools
import re
from collections.abc import Callable
from typing import Any

from data_tools.images import MOST_PIXELS
from data_tools.statistics import SMALLEST_STD
from data_tools.tar import BLOCK

VERSION = 2
# What an index of version 1 says by not having these keys.
SINCE_VERSION_2 = {"format": "files", "class_titles": []}
FORMATS = ("files", "raw")

# A file name and nothing else: no folder, no parent, nothing hidden.
PLAIN_TAR_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.tar")
SHA256 = re.compile(r"[0-9a-f]{64}")
SEEDS = 2**32  # numpy takes them from 0 to this, exclusive
LARGEST_SHARD = 2**50  # bytes; sums of such sizes and lengths stay within 64 bits


def check_index(content: Any) -> str | None:
    """Return what is wrong with the content of an ``_info.json``, or None."""
    if not isinstance(content, dict):
        return "it is not a JSON object"
    if content.get("version") not in (1, VERSION):
        return f"its version is {content.get('version')!r} where {VERSION} is expected"
    for key, (holds, expected) in _FIELDS.items():
        if key not in content:
            return f"it has no {key!r}"
        if not holds(content[key]):
            return f"{key!r} is not {expected}"
    if content["format"] == "raw" and not content["image_shape"]:
        return "raw images without an 'image_shape'"
    if len(content["class_titles"]) not in (0, len(content["class_names"])):
        return "'class_titles' does not have one title for each class"
    channels = content["image_shape"][0] if content["image_shape"] else 3
    if len(content["mean"]) != channels or len(content["std"]) != channels:
        return f"'mean' and 'std' do not have one number for each of the {channels} channels"
    problems = (_check_split(name, split, content) for name, split in content["splits"].items())
    return next((problem for problem in problems if problem), None) or _check_overlap(content["splits"])


def _check_overlap(splits: dict[str, Any]) -> str | None:
    """Say which file two splits share: whoever trains on one of them must not test with it."""
    for (first, one), (second, other) in itertools.combinations(splits.items(), 2):
        for name in set(one["filenames"]) & set(other["filenames"]):
            return f"both {first!r} and {second!r} list {name}"
    return None


def _check_split(name: str, split: Any, content: dict[str, Any]) -> str | None:
    if not isinstance(split, dict):
        return f"split {name!r} is not an object"
    for key, (holds, expected) in _COLUMNS.items():
        if key not in split:
            return f"split {name!r} has no {key!r}"
        bad = (
            [item for item in split[key] if not holds(item)] if isinstance(split[key], list) else [split[key]]
        )
        if bad:
            return f"split {name!r} lists {bad[0]!r} in {key!r}, which is not {expected}"
    lengths = {len(split[key]) for key in _COLUMNS}
    if len(lengths) > 1:
        return f"the columns of split {name!r} differ in length"
    if lengths == {0}:
        return f"split {name!r} is empty"
    if len(set(split["filenames"])) < len(split["filenames"]):
        return f"split {name!r} lists a file twice"
    least = _least_bytes(content)
    for length, size in zip(split["shard_lengths"], split["bytes"], strict=True):
        if length * least > size:
            return f"split {name!r} lists a shard of {length} samples in {size} bytes"
    total = sum(split["shard_lengths"])
    if split.get("num_samples") != total:
        return f"'num_samples' of split {name!r} is {split.get('num_samples')!r}, its shards hold {total}"
    return None


def _least_bytes(content: dict[str, Any]) -> int:
    """Return what a sample takes at the least: pixels and a label, or a header in a tar."""
    if content["format"] == "files":
        return BLOCK
    channels, height, width = content["image_shape"]
    return channels * height * width + 8


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < SEEDS


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SHARD


def _is_shape(value: Any) -> bool:
    if value is None:
        return True
    if not (isinstance(value, list) and len(value) == 3 and all(map(_is_size, value))):
        return False
    channels, height, width = value
    return channels in (1, 3) and height * width <= MOST_PIXELS


def _is_class_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(map(_is_text, value))
        and len(set(value)) == len(value)
    )


def _is_title_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_mean(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in value)


def _is_std(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, (int, float)) and SMALLEST_STD <= v <= 1 for v in value
    )


_Check = tuple[Callable[[Any], bool], str]
_FIELDS: dict[str, _Check] = {
    "name": (_is_text, "a name"),
    "source": (_is_text, "the name of a source"),
    "seed": (_is_seed, "a number from 0 up to 2**32"),
    "fingerprint": (_is_text, "a text"),
    "format": (lambda value: value in FORMATS, "'files' or 'raw'"),
    "class_names": (_is_class_list, "a list of different names"),
    "class_titles": (_is_title_list, "a list of texts"),
    "image_shape": (_is_shape, f"[channels, height, width] of at most {MOST_PIXELS} pixels, or null"),
    "mean": (_is_mean, "a list of numbers from 0 to 1"),
    "std": (_is_std, "a list of numbers from 1/255 to 1"),
    "splits": (lambda value: isinstance(value, dict) and bool(value), "an object with at least one split"),
}
_COLUMNS: dict[str, _Check] = {
    "filenames": (
        lambda v: isinstance(v, str) and bool(PLAIN_TAR_NAME.fullmatch(v)),
        "a plain name of a tar",
    ),
    "shard_lengths": (_is_size, f"a number of samples from 1 to {LARGEST_SHARD}"),
    "sha256": (lambda v: isinstance(v, str) and bool(SHA256.fullmatch(v)), "a SHA-256"),
    "bytes": (_is_size, f"a number of bytes from 1 to {LARGEST_SHARD}"),
}
