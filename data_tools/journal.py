"""What a writer has finished so far, kept beside the shards, so that an interrupted one goes on."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from data_tools.errors import ShardError
from data_tools.index import Shard
from data_tools.places import Place
from data_tools.statistics import ImageStatistics

JOURNAL_NAME = "_journal.jsonl"


@dataclass(frozen=True)
class Finished:
    """A shard that is whole and in its place, and what was seen of its images."""

    shard: Shard
    statistics: ImageStatistics


class Journal:
    """The finished shards of one data set; its first line says which data set that is."""

    def __init__(self, place: Place, fingerprint: str) -> None:
        self._place = place
        self._title = {"fingerprint": fingerprint}

    def exists(self) -> bool:
        """Whether a writer of some shards began here and has not finished."""
        return bool(self._place.read(JOURNAL_NAME))

    def open(self) -> dict[str, Finished]:
        """Return the finished shards that are still there, by name, and begin the journal anew with them.

        Raises:
            ShardError: the journal there belongs to another data set.
        """
        try:
            lines = _whole_lines(self._place.read(JOURNAL_NAME))
            items = [_parse(line) for line in lines[1:]]
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"cannot read {self._place.root}/{JOURNAL_NAME} ({error}): delete that folder, or choose another --out"
            ) from error
        if lines and lines[0] != self._title:
            raise ShardError(
                f"{self._place.root} already holds an unfinished set of other shards: "
                "choose another --out or delete that folder"
            )
        sizes = self._place.sizes()
        kept = [item for item in items if sizes.get(item.shard.name) == item.shard.size]
        self._place.write(JOURNAL_NAME, _text(self._title) + b"".join(map(_entry, kept)))
        return {item.shard.name: item for item in kept}

    def add(self, item: Finished) -> None:
        """Record a shard that has reached its place."""
        self._place.append(JOURNAL_NAME, _entry(item))

    def close(self) -> None:
        """Remove the journal: from now on the index says it all."""
        self._place.remove(JOURNAL_NAME)


def _parse(line: dict[str, Any]) -> Finished:
    return Finished(Shard(*line["shard"]), ImageStatistics(**line["statistics"]))


def _entry(item: Finished) -> bytes:
    return _text({"shard": item.shard, "statistics": asdict(item.statistics)})


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _whole_lines(data: bytes) -> list[dict[str, Any]]:
    """Parse all lines but a last one that was cut off when its writer ended."""
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
