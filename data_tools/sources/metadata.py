"""Image folders whose labels are in metadata files, as Hugging Face has them: ``file_name`` and ``label`` of images."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.errors import ShardError, reported
from data_tools.find import SPLITS
from data_tools.labels import FIELDS, text_of, why_no_class
from data_tools.sources.base import FileSplit, RawSplit, number_labels, read_file

METADATA = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"


def find_metadata(folder: Path, split_folders: Sequence[str]) -> list[Path]:
    """Return the metadata files in a folder and in its folders of splits."""
    places = [folder, *(folder / name for name in split_folders)]
    return [place / name for place in places for name in METADATA if (place / name).is_file()]


def list_labelled_files(root: Path, paths: Sequence[Path]) -> tuple[tuple[str, ...], dict[str, RawSplit]]:
    """List the images that metadata files name, by the split folder below ``root`` that they are in, or as train.

    Returns:
        The names of the classes, and the splits.
    """
    labels: dict[str, dict[str, str]] = {}
    for path in paths:
        for place, row in _rows(path):
            name, label = _file(path, place, row), _label(place, row)
            file = str((path.parent / name).relative_to(root))
            first, slash, _ = file.partition("/")
            split = labels.setdefault(SPLITS.get(first.lower(), "train") if slash else "train", {})
            if file in split:
                raise ShardError(f"{place}: {name} comes twice, but one class for each image is expected")
            split[file] = label
    classes, numbers = number_labels({split: list(of.values()) for split, of in labels.items()}, root)
    return classes, {split: FileSplit(root, list(of), numbers[split]) for split, of in labels.items()}


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a metadata file, each with its place for messages."""
    with reported(f"{path} is damaged", (ValueError, csv.Error, RecursionError)):
        text = read_file(path).decode("utf-8-sig")
        if path.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""))
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
        else:
            lines = enumerate(text.split("\n"), start=1)
            rows = [(f"{path}, line {number}", json.loads(line)) for number, line in lines if line.strip()]
    if not rows:
        raise ShardError(f"{path} names no images")
    yield from rows


def _file(path: Path, place: str, row: Any) -> str:
    name = row.get(FILE) if isinstance(row, dict) else None
    if not isinstance(name, str) or not name:
        raise ShardError(f"{place}: it has no {FILE}")
    # A metadata file may be somebody else's.
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ShardError(f"{place}: {name} is not in {path.parent} or below it")
    return name


def _label(place: str, row: Mapping[str, Any]) -> str:
    field = next((field for field in FIELDS if field in row), None)
    if field is None:
        raise ShardError(f"{place}: it has {', '.join(map(str, row))}: expected {FILE} and one of {', '.join(FIELDS)}")
    if row[field] in (None, ""):
        raise ShardError(f"{place}: its {field} is empty")
    with reported(place, ValueError):
        label = text_of(row[field], field).strip()
    if why := why_no_class(label):
        raise ShardError(f"{place}: its {field} is {label[:40]!r}, {why}: expected one class for each image")
    return label
