"""Runs on real ranks: a resume loses and repeats no image, and all ranks learn what one of them could not read."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

from data_tools import make_shards, read_index
from dist_prune.data import open_data
from dist_prune.data.plan import Order

GLOBAL_BATCH, STEPS = 128, 11  # of an epoch of digits
BROKEN = b"\x89PNG\r\n\x1a\nbroken"


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_shards("digits", None, folder)
    return folder


def spoil(folder: Path, split: str, number: int) -> None:
    """Break one image: the first bytes stay, the others are wrong."""
    name = f"{split}-{number:08d}.png"
    (path,) = (path for path in folder.glob(f"*-{split}-*.tar") if name.encode() in path.read_bytes())
    content = bytearray(path.read_bytes())
    begin = content.index(name.encode()) + 512
    content[begin : begin + len(BROKEN)] = BROKEN
    path.write_bytes(content)


def train(data: str, out: str, settings: list[str], faulty_rank: int | None = None, **options: Any) -> dict[str, Any]:
    """Run on this rank; what each step of it trained on, what it learned of all ranks, and how the run ended.

    On ``faulty_rank``, reading raises what nobody foresaw after 200 images.
    """
    from dist_prune import distributed
    from dist_prune.config import override
    from dist_prune.data.reader import Reader
    from dist_prune.errors import RunError, UserError
    from dist_prune.recipes import recipe
    from dist_prune.training import loop as trainer
    from dist_prune.training.run import Options, run

    plain = trainer.train_step
    seen: list[list[bytes]] = []
    skipped: list[int] = []

    def watched(engine: Any, phase: Any, batches: Any, *rest: Any, **named: Any) -> Any:
        seen.append([image.numpy().tobytes() for images, *_ in batches for image in images])
        record = plain(engine, phase, batches, *rest, **named)
        skipped.append(record.flags.skipped)
        return record

    sample, read = Reader.sample, itertools.count()

    def faulty(*place: Any) -> Any:
        return sample(*place) if next(read) < 200 else {}["no such key"]

    if distributed.rank() == faulty_rank:
        Reader.sample = faulty
    trainer.train_step = watched
    settings = [
        f"data={json.dumps(data)}",
        "model=resnet8",
        "gates.kind=none",
        "epochs=1",
        "log_every=1",
        "augment.crop_padding=0",
        "augment.flip=false",
        "workers=0",  # ranks of tests may not have children
        *settings,
    ]
    try:
        run(override(recipe("digits"), settings), Options("ds_configs/zero0.json", out=out, **options))
        ending = None
    except (UserError, RunError) as error:
        ending = str(error)
    finally:
        trainer.train_step, Reader.sample = plain, sample
    return {"seen": seen, "skipped": skipped, "ending": ending}


def epoch_of(data: Path) -> list[Counter[bytes]]:
    """The images of each global batch of the first epoch of seed 1, by the plan."""
    images = open_data(str(data), workers=0)
    stored = [
        image.numpy().tobytes()
        for batch, *_ in images.eval_batches("train", batch_size=500, rank=0, world_size=1)
        for image in batch
    ]
    lengths = read_index(data).split("train").shard_lengths
    order = Order(lengths, seed=1, epoch=0, global_batch=GLOBAL_BATCH)
    parts = [order.part(step, 0, GLOBAL_BATCH) for step in range(order.steps)]
    return [
        Counter(stored[sum(lengths[:shard]) + row] for shard, row in zip(part.shards, part.rows, strict=True))
        for part in parts
    ]


@pytest.fixture(scope="module")
def spoiled(digits, tmp_path_factory) -> dict[str, Path]:
    """Copies of digits with broken images: one that the first epoch trains on, one that it is tested on."""
    folders = {}
    for name, splits in {"train": {"train": 600}, "test": {"test": 100}, "both": {"train": 600, "test": 100}}.items():
        folders[name] = tmp_path_factory.mktemp("spoiled") / name
        shutil.copytree(digits, folders[name])
        for split, number in splits.items():
            spoil(folders[name], split, number)
    return folders


@pytest.fixture(scope="module")
def runs(digits, spoiled, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Several runs of two ranks, one after another: by name, the run folder and the results of both ranks."""
    asked = {
        "stopped": (digits, [], {"max_steps": 4}),
        "skip": (spoiled["both"], ["bad_data=skip"], {}),
        "limit": (spoiled["both"], ["bad_data=skip", "max_skipped=0"], {}),
        "error": (spoiled["both"], ["bad_data=error"], {}),
        "error in evaluation": (spoiled["test"], [], {}),
        # Decoded images would not be read by the faulty reader.
        "fault": (digits, ["cache.decoded_gigabytes=0"], {"faulty_rank": 1}),
    }
    folders = {name: tmp_path_factory.mktemp("runs") / "run" for name in asked}
    calls = [(str(data), str(folders[name]), *rest) for name, (data, *rest) in asked.items()]
    results = zip(*run_ranks(2, train_all, calls, seconds=240), strict=True)
    return {name: {"folder": folders[name], "ranks": ranks} for name, ranks in zip(asked, results, strict=True)}


def train_all(calls: list[tuple[str, str, list[str], dict[str, Any]]]) -> list[dict[str, Any]]:
    return [train(data, out, settings, **options) for data, out, settings, options in calls]


def test_a_run_stopped_in_mid_epoch_goes_on_with_the_rest_of_the_epoch_on_another_number_of_ranks(digits, runs):
    stopped = runs["stopped"]
    rest = [(str(digits), str(stopped["folder"]), [], {"max_steps": STEPS - 4, "resume": True})]
    ((resumed,),) = run_ranks(1, train_all, rest)
    steps = [[*one, *other] for one, other in zip(*(rank["seen"] for rank in stopped["ranks"]), strict=True)]
    steps += resumed["seen"]
    assert [Counter(step) for step in steps] == epoch_of(digits)


def test_what_one_rank_skips_is_counted_by_all_and_stands_in_the_summary(runs):
    folder, ranks = runs["skip"]["folder"], runs["skip"]["ranks"]
    assert [rank["ending"] for rank in ranks] == [None, None]
    assert ranks[0]["skipped"] == ranks[1]["skipped"]
    assert sum(ranks[0]["skipped"]) == 1
    assert sum(len(step) for rank in ranks for step in rank["seen"]) == STEPS * GLOBAL_BATCH - 1
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    counts = {record["kind"]: record["samples_skipped"] for record in records}  # of the last of each kind
    assert counts == {"train": 1, "eval": 2, "summary": 2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("limit", "1 images of this epoch could not be read, more than max_skipped=0"),
        ("error", "sample train-00000600: corrupt image"),
        ("error in evaluation", "sample test-00000100: corrupt image"),
        ("fault", "reading failed: KeyError: 'no such key' (in faulty, test_data_over_ranks.py, line "),
    ],
)
def test_what_one_rank_cannot_read_stops_all_ranks_at_the_same_step_with_the_same_line(runs, name, expected):
    one, other = runs[name]["ranks"]
    assert expected in one["ending"]
    assert "\n" not in one["ending"]
    assert one["ending"] == other["ending"]
    assert len(one["seen"]) == len(other["seen"])
    assert (len(one["seen"]) == STEPS) == (name == "error in evaluation")
    status = json.loads((runs[name]["folder"] / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", one["ending"])
