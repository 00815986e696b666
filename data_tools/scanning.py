"""What the headers of a shard say, and some of its images; of many shards, several at a time, and never twice."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from data_tools import tar
from data_tools.errors import ShardError, reported
from data_tools.images import ImageError, ImageStatistics, decode_pixels, read_header
from data_tools.index import Shard, checksum
from data_tools.labels import LARGEST_LABEL, LabelRule
from data_tools.parallel import each
from data_tools.store import ShardStore

HEADER_BYTES = 2**16  # of an image, which hold its size, unless a color profile comes first


class Scan(NamedTuple):
    """What was found in one shard: its labels as they are written, and a digest of all that it holds."""

    shard: Shard
    labels: Counter[str]
    digest: str
    statistics: ImageStatistics

    def to_json(self) -> str:
        """Return it in one line."""
        return json.dumps({**self._asdict(), "statistics": dataclasses.asdict(self.statistics)})

    @staticmethod
    def from_json(line: str) -> "Scan":
        """Return what ``to_json`` wrote; an error of some kind if the line is damaged."""
        found = json.loads(line)
        shard, statistics = Shard(*found["shard"]), ImageStatistics(**found["statistics"])
        return Scan(shard, Counter(found["labels"]), found["digest"], statistics)


@dataclasses.dataclass(frozen=True)
class Scanner:
    """Scans the shards of one store. measured: of how many images of a shard pixels are counted, by split."""

    store: ShardStore
    rule: LabelRule
    checksums: bool
    measured: Mapping[str, int]

    def __call__(self, task: tuple[str, str]) -> tuple[str, Scan]:
        """Scan a shard, by its split and name; return its name as well."""
        split, name = task
        with self.store.temporary_copy(name) as path:
            scan = self._scan(path, name, self.measured.get(split, 0))
            if scan.shard.length:
                self.store.keep(path, scan.shard)
        return name, scan

    def _scan(self, path: Path, name: str, measured: int) -> Scan:
        labels, statistics, digest, count = Counter[str](), ImageStatistics(), hashlib.sha256(), 0
        with opened(path) as file:
            for key, parts in tar.samples(tar.members(file)):
                if not tar.is_sample(parts, self.rule.member):
                    continue
                # Samples that cannot be used count as well: a run stops there, or skips them, as bad_data says.
                label = self._label(file, parts)
                labels.update([label] if label is not None else [])
                images = tar.images_of(parts)
                size = images[0].size if images else 0
                digest.update(f"{key} {size} {label}\n".encode(errors="replace"))
                if len(images) == 1:
                    _look(file, images[0], statistics, measure=count < measured)
                count += 1
            size = os.fstat(file.fileno()).st_size
        # A copy of a remote shard is here anyway.
        is_wanted = self.checksums or self.store.is_remote
        return Scan(
            Shard(name, count, checksum(path, "sha256") if is_wanted else None, size),
            labels,
            digest.hexdigest(),
            statistics,
        )

    def _label(self, file: IO[bytes], parts: tar.Parts) -> str | None:
        if self.rule.member not in parts:
            return None
        member = parts[self.rule.member]
        try:
            return self.rule.text(os.pread(file.fileno(), min(member.size, LARGEST_LABEL), member.offset))
        except ValueError:
            return None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a tar; its damages are reported."""
    damaged = reported(f"damaged shard {path}", ValueError, "; copy it again")
    with reported(f"cannot read shard {path}"), damaged, open(path, "rb", buffering=0) as file:
        if os.pread(file.fileno(), 6, 0).startswith(tar.COMPRESSED):
            raise ShardError(f"{path} is compressed: unpack it, shards are plain tars")
        yield file


def _look(file: IO[bytes], image: tar.Member, statistics: ImageStatistics, measure: bool) -> None:
    """Count the size of an image, and its pixels if it is measured."""
    if image.size > tar.LARGEST_IMAGE:
        return
    # What comes before the size may be longer, such as a color profile.
    for length in sorted({image.size if measure else min(image.size, HEADER_BYTES), image.size}):
        data = os.pread(file.fileno(), length, image.offset)
        with contextlib.suppress(ImageError):
            facts = read_header(data)
            if measure:
                statistics.measure(decode_pixels(data, 1 if facts.gray else 3))
            statistics.see(facts)
            return


def scan_all(
    scanner: Scanner, tasks: Sequence[tuple[str, str]], workers: int, journal: Path, progress: bool
) -> dict[str, Scan]:
    """Return the scans of shards by name; those in the journal are not made again, and new ones are added to it.

    Args:
        scanner: how a shard is scanned.
        tasks: split and name of each.
        workers: processes.
        journal: a file that holds a line for each shard that was scanned.
        progress: show a bar.
    """
    done = dict(_read(journal, scanner, tasks))
    left = [task for task in tasks if task[1] not in done]
    title = f"reading headers of {scanner.store.spec}"
    with (
        reported(f"cannot write {journal}"),
        open(journal, "a", encoding="utf-8") as file,
        tqdm(total=len(tasks), initial=len(done), unit=" shards", desc=title, disable=not progress) as bar,
    ):
        for name, scan in each(scanner, left, workers):
            done[name] = scan
            file.write(f"{_state(scanner, name)} {scan.to_json()}\n")
            file.flush()
            bar.update()
    return done


def _read(journal: Path, scanner: Scanner, tasks: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Scan]]:
    """Yield the scans of a journal that are of these shards as they are now, by name."""
    states = {_state(scanner, name): name for _, name in tasks} if journal.exists() else {}
    with contextlib.suppress(OSError), open(journal, encoding="utf-8", errors="replace") as file:
        for line in file:
            state, _, content = line.partition(" ")
            # The last line may be half of one.
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                if state in states:
                    yield states[state], Scan.from_json(content)


def _state(scanner: Scanner, name: str) -> str:
    """Return what decides a scan, as a hash: the file, and what is looked for in it."""
    about: list[Any] = [scanner.rule, scanner.checksums, dict(scanner.measured), scanner.store.address_of(name)]
    if not scanner.store.is_remote:
        with reported(f"cannot read shard {name}"):
            state = Path(scanner.store.address_of(name)).stat()
        about += [state.st_size, state.st_mtime_ns]
    return hashlib.sha256(repr(about).encode(errors="surrogateescape")).hexdigest()[:32]
