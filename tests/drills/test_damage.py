"""Checkpoints that are damaged, or whose writing is cut off, are passed over by name for the one before."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from drill import assert_same_course
from ranks import FORKSERVER

from dist_prune.checkpoints.format import load_checkpoint, load_newest, save_checkpoint
from dist_prune.checkpoints.train_state import ModelState, Origin, Progress, TrainState

pytestmark = pytest.mark.drill


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "name"), [(cut, "optimizer.safetensors"), (flip_a_bit, "model.safetensors")])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(resume, straight, tmp_path, damage, name):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == ["step-00000004", "step-00000006"]
    damage(folder / "checkpoints" / "step-00000006" / name)
    told = resume(folder)
    assert len(told) == 1, told
    assert told[0].endswith(f"is damaged: {name} does not match its checksum; passing over it")
    assert_same_course(folder, straight)


def write_for_ever(folder: Path, began) -> None:
    torch.set_num_threads(1)
    step = 0
    while True:
        step += 1
        weights = {str(i): torch.full((50_000,), float(step)) for i in range(20)}
        model = ModelState(weights, {"w": weights})
        data = {"fingerprint": "abc", "shard_lengths": {}}
        origin: Origin = {"recipe": {}, "ds_config": {}, "micro_batch": 8, "versions": {}}
        save_checkpoint(folder, TrainState(Progress(step=step), data, origin, model=model))
        began.set()


def test_a_process_killed_while_it_writes_leaves_a_whole_checkpoint_twenty_times_in_a_row(tmp_path):
    chance, newest = random.Random(5), 0
    cut_off = 0
    for _ in range(20):
        began = FORKSERVER.Event()
        writer = FORKSERVER.Process(target=write_for_ever, args=(tmp_path, began), daemon=True)
        writer.start()
        assert began.wait(60)
        time.sleep(chance.uniform(0, 0.3))
        writer.kill()
        writer.join()
        cut_off += any(tmp_path.glob(".*.tmp"))
        for path in tmp_path.glob("step-*"):
            step = int(path.name[5:])
            assert all((w == step).all() for w in load_checkpoint(path).model.weights.values()), (
                "whole, all of one step"
            )
        found, passed_over = load_newest(tmp_path)
        assert found is not None
        assert passed_over == []
        assert (tmp_path / "latest").read_text().strip() in {path.name for path in tmp_path.glob("step-*")}
        newest = max(newest, found.progress.step)
    assert cut_off >= 5, "most kills must have hit a checkpoint that was being written"
    assert newest > 1
