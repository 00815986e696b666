"""What an ``_info.json`` must look like; says what is wrong with one that does not."""

import re
from collections.abc import Callable
from typing import Any

VERSION = 2
# What an index of version 1 says by not having these keys.
SINCE_VERSION_2 = {"format": "files", "class_titles": []}
FORMATS = ("files", "raw")

# A file name and nothing else: no folder, no parent, nothing hidden.
PLAIN_TAR_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.tar")
SHA256 = re.compile(r"[0-9a-f]{64}")


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
    problems = (_check_split(name, split) for name, split in content["splits"].items())
    return next((problem for problem in problems if problem), None)


def _check_split(name: str, split: Any) -> str | None:
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
    total = sum(split["shard_lengths"])
    if split.get("num_samples") != total:
        return f"'num_samples' of split {name!r} is {split.get('num_samples')!r}, its shards hold {total}"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_shape(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and len(value) == 3 and all(map(_is_size, value)) and value[0] in (1, 3)


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
    return isinstance(value, list) and all(isinstance(v, (int, float)) and 0 < v <= 1 for v in value)


_Check = tuple[Callable[[Any], bool], str]
_FIELDS: dict[str, _Check] = {
    "name": (_is_text, "a name"),
    "source": (_is_text, "the name of a source"),
    "seed": (_is_count, "a number from 0 up"),
    "fingerprint": (_is_text, "a text"),
    "format": (lambda value: value in FORMATS, "'files' or 'raw'"),
    "class_names": (_is_class_list, "a list of different names"),
    "class_titles": (_is_title_list, "a list of texts"),
    "image_shape": (_is_shape, "[channels, height, width] or null"),
    "mean": (_is_mean, "a list of numbers from 0 to 1"),
    "std": (_is_std, "a list of numbers above 0 and up to 1"),
    "splits": (lambda value: isinstance(value, dict) and bool(value), "an object with at least one split"),
}
_COLUMNS: dict[str, _Check] = {
    "filenames": (
        lambda v: isinstance(v, str) and bool(PLAIN_TAR_NAME.fullmatch(v)),
        "a plain name of a tar",
    ),
    "shard_lengths": (_is_size, "a number of samples above 0"),
    "sha256": (lambda v: isinstance(v, str) and bool(SHA256.fullmatch(v)), "a SHA-256"),
    "bytes": (_is_size, "a number of bytes above 0"),
}
