"""Looks at every byte of a data set in shards, and names each broken shard and sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_tools.contents import check_contents
from data_tools.errors import ShardError
from data_tools.files import sha256_of
from data_tools.index import Shard, ShardIndex
from data_tools.parallel import each
from data_tools.storage import Storage, open_storage

SHOWN_PER_SHARD = 20


def verify_shards(
    location: str | Path, *, split: str | None = None, workers: int = 1, progress: bool = False
) -> list[str]:
    """Return what is wrong with a data set in shards, a line each; nothing if all is well.

    Looked at are sizes and checksums, the number of samples, keys that come twice, labels that are no
    classes, and whether every image can be decoded.

    Args:
        location: as for ``open_storage``; what lies elsewhere is copied, shard by shard.
        split: the only one to look at.
        workers: processes.
        progress: show a bar.

    Raises:
        ShardError: there is no index, or it cannot be right, or it has no such split.
    """
    storage = open_storage(location)
    index = storage.read_index()
    parts = index.splits.values() if split is None else [index.split(split)]
    shards = [shard for part in parts for shard in part]
    reports = {}
    samples = sum(shard.length for shard in shards)
    with tqdm(total=samples, unit=" samples", desc=index.name, disable=not progress) as bar:
        for report in each(_Verifier(storage, index), shards, workers):
            reports[report.shard.name] = report
            bar.update(report.shard.length)
    in_order = [reports[shard.name] for shard in shards]
    found = [(report.shard.name, problem) for report in in_order for problem in report.problems]
    return [f"{index.root}/{name}: {problem}" for name, problem in [*found, *_shared_keys(in_order)]]


@dataclass(frozen=True)
class _Report:
    shard: Shard
    keys: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Verifier:
    storage: Storage
    index: ShardIndex

    def __call__(self, shard: Shard) -> _Report:
        try:
            with self.storage.lend(shard.name, shard.size) as path:
                keys, problems = self._look_at(path, shard)
        except ShardError as error:
            keys, problems = [], [str(error)]
        except OSError as error:
            keys, problems = [], [error.strerror or str(error)]
        more = len(problems) - SHOWN_PER_SHARD
        if more > 0:
            problems[SHOWN_PER_SHARD:] = [f"and {more} more problems"]
        return _Report(shard, tuple(keys), tuple(problems))

    def _look_at(self, path: Path, shard: Shard) -> tuple[list[str], list[str]]:
        found = path.stat().st_size
        if found != shard.size:
            problems = [f"{found} bytes where the index says {shard.size}"]
        elif sha256_of(path) != shard.sha256:
            problems = ["its checksum is not that of the index"]
        else:
            problems = []
        contents = check_contents(path, self.index, shard)
        return contents.keys, problems + contents.problems


def _shared_keys(reports: list[_Report]) -> Iterator[tuple[str, str]]:
    """Yield (shard, problem) for the keys that come in more than one shard."""
    first: dict[str, str] = {}
    for report in reports:
        for key in report.keys:
            owner = first.setdefault(key, report.shard.name)
            if owner != report.shard.name:
                yield report.shard.name, f"sample {key} is in {owner} too"
