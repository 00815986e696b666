"""The same program under every launcher, at the number of ranks that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import QUICK, records

LAUNCHERS = {
    "deepspeed, 2 ranks, zero3": (["deepspeed", "--num_accelerators", "2", "launch/train.py"], "zero3", 2),
    "torchrun, 2 ranks": (["torchrun", "--nproc_per_node", "2", "launch/train.py"], "zero1", 2),
    "accelerate": (
        ["accelerate", "launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no",
         "--dynamo_backend", "no", "launch/train.py"],
        "zero0",
        1,
    ),
}  # fmt: skip


# Starting two launched ranks takes half a minute of a core.
@pytest.mark.drill
@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_program_runs_under(name, command, tmp_path):
    words, ds_config, world_size = LAUNCHERS[name]
    folder = tmp_path / "run"
    done = command(*words, "--ds_config", f"ds_configs/{ds_config}.json", "--out", folder, "--set", *QUICK)
    assert done.code == 0, done.err
    assert_finished(folder, world_size)


def assert_finished(folder: Path, world_size: int) -> None:
    (summary,) = records(folder, "summary")
    assert summary["world_size"] == world_size
    assert summary["max_abs_difference"] <= 1e-5
    assert json.loads((folder / "config.json").read_text())["world_size"] == world_size


def test_two_ranks_train_in_bf16(forked_ranks, tmp_path):
    words = ["--ds_config", "ds_configs/zero2_bf16.json", "--out", tmp_path / "run", "--set", *QUICK]
    ranks = forked_ranks(2, "python", "launch/train.py", *words)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert_finished(tmp_path / "run", 2)


@pytest.mark.drill
def test_a_hostfile_that_is_not_there_ends_the_run_instead_of_training_on_this_machine_alone(command, tmp_path):
    folder = tmp_path / "run"
    words = ["deepspeed", "--num_accelerators", "1", "--hostfile", "nowhere", "launch/train.py"]
    done = command(*words, "--ds_config", "ds_configs/zero2.json", "--out", folder)
    assert done.code == 2, done.err
    assert "error: hostfile nowhere not found, so deepspeed would train on this machine alone" in done.lines
    assert not folder.exists()
