"""Shards that are damaged, cut or unreadable under a run: one line on all ranks, or left out and counted; resumable."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import records
from drill import AtStep, assert_same_course, status

from data_tools import make_shards
from data_tools.tar import members

pytestmark = pytest.mark.drill
SHARD = "digits-train-000002.tar"
# Images that are kept decoded would not show what happens to their shard.
FROM_SHARDS = "cache.decoded_gigabytes=0"


@dataclass(frozen=True)
class FlipBytes:
    """One byte in the middle of every image of a shard, as a faulty disk or memory would."""

    shard: Path

    def __call__(self) -> None:
        with open(self.shard, "r+b") as file:
            for member in [member for member in members(file) if member.name.endswith(".png")]:
                file.seek(member.offset + member.size // 2)
                byte = file.read(1)[0]
                file.seek(member.offset + member.size // 2)
                file.write(bytes([byte ^ 0xFF]))


@dataclass(frozen=True)
class Cut:
    """The shard loses its second half, while it is open."""

    shard: Path

    def __call__(self) -> None:
        os.truncate(self.shard, self.shard.stat().st_size // 2)


@dataclass(frozen=True)
class CannotRead:
    """From now on, reading from a shard fails in this rank ("Input/output error")."""

    def __call__(self) -> None:
        def refuse(*_: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        os.pread = refuse


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """The digits as PNG files, in shards of 200."""
    folder = tmp_path_factory.mktemp("photographs") / "digits"
    make_shards("digits", None, folder, samples_per_shard=200)
    return folder


@pytest.fixture(scope="session")
def straight_on_photographs(launch, photographs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight-photographs") / "run"
    ranks = launch(folder, "--data", str(photographs), "--max_steps", "6")
    assert ranks.wait() == [3, 3], ranks.told()
    return folder


@pytest.fixture
def copied(photographs, tmp_path) -> Path:
    return Path(shutil.copytree(photographs, tmp_path / "digits"))


@pytest.mark.parametrize(
    ("damage", "words"), [(FlipBytes, "corrupt image"), (Cut, "it became shorter; make or copy it again")]
)
def test_a_shard_that_is_damaged_under_a_run_ends_it_with_one_line_and_it_resumes_once_that_is_fixed(
    launch, resume, photographs, straight_on_photographs, copied, tmp_path, damage, words
):
    folder = tmp_path / "run"
    data = ("--data", str(copied))
    ranks = launch(folder, *data, settings=(FROM_SHARDS,), sabotage={0: AtStep(4, damage(copied / SHARD))})
    told = ranks.last_words(2, 2)
    assert told.startswith("error: ")
    assert f"{copied}/{SHARD}" in told
    assert words in told
    assert told.endswith("; bad_data=skip leaves out what cannot be read")
    assert f"error: {status(folder)['reason']}" == told
    shutil.copy(photographs / SHARD, copied / SHARD)
    resume_with(resume, folder, copied)
    assert_same_course(folder, straight_on_photographs)


def resume_with(resume, folder: Path, data: Path) -> None:
    """Resume with the shards where they are now; the recipe must name them as it did."""
    resume(folder, "--data", str(data))


@pytest.mark.parametrize("damage", [FlipBytes, Cut])
def test_with_bad_data_skip_the_samples_of_a_damaged_shard_are_left_out_and_counted_alike_on_all_ranks(
    launch, copied, tmp_path, damage
):
    folder = tmp_path / "run"
    settings = ("bad_data=skip", "max_skipped=1000", FROM_SHARDS)
    sabotage = {0: AtStep(4, damage(copied / SHARD))}
    words = ("--data", str(copied), "--max_steps", "6")
    ranks = launch(folder, *words, settings=settings, sabotage=sabotage)
    assert ranks.wait() == [3, 3], ranks.told()
    counts = [record["samples_skipped"] for record in records(folder, "train")]
    assert counts[:3] == [0, 0, 0]
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 3 * 128
    told = ranks.told()
    assert all(line.startswith("skipped: ") for line in told), told
    assert any(SHARD in line for line in told)


def test_a_rank_that_cannot_read_ends_all_with_one_line(launch, resume, straight_on_photographs, photographs, tmp_path):
    folder = tmp_path / "run"
    data = ("--data", str(photographs))
    ranks = launch(folder, *data, settings=(FROM_SHARDS,), sabotage={1: AtStep(4, CannotRead())})
    told = ranks.last_words(2, 2)
    assert told.startswith("error: cannot read shard ")
    assert ": Input/output error" in told
    resume(folder, *data)
    assert_same_course(folder, straight_on_photographs)
