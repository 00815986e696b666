"""Rank helpers without a process group, and the environment that launchers leave."""

import pytest
import torch
from torch import nn

from dist_prune import distributed

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = (
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NTASKS",
    "SLURM_JOB_ID",
    "SLURM_LAUNCH_NODE_IPADDR",
)


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES + SLURM:
        monkeypatch.delenv(name, raising=False)

    def complete(**given):
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("os.environ", dict(distributed.os.environ))
        distributed.complete_environment()
        return {name: distributed.os.environ[name] for name in NAMES}

    return complete


def test_without_a_launcher_there_is_one_rank_on_a_free_port(environment):
    seen = environment()
    assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == ("0", "0", "1")
    assert seen["MASTER_ADDR"] == "127.0.0.1"
    assert 1024 <= int(seen["MASTER_PORT"]) < 65536


def test_a_bare_srun_is_read_from_slurms_variables(environment):
    given = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
    seen = environment(**given, SLURM_JOB_ID="123456", SLURM_LAUNCH_NODE_IPADDR="10.0.0.7")
    assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == ("5", "1", "8")
    assert seen["MASTER_ADDR"] == "10.0.0.7"
    assert seen["MASTER_PORT"] == str(20000 + 123456 % 20000), "the same on all ranks"


def test_torchrun_inside_srun_wins(environment):
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
    torchrun = {
        "RANK": "6",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "host",
        "MASTER_PORT": "29500",
    }
    assert environment(**slurm, **torchrun) == torchrun


def test_a_launcher_that_sets_ranks_is_not_mixed_with_slurms_variables(environment):
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "3", "SLURM_NTASKS": "8"}
    seen = environment(**slurm, RANK="0")
    assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == ("0", "0", "1")


def test_an_sbatch_script_without_a_step_is_one_process(environment):
    seen = environment(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NTASKS="8")
    assert seen["WORLD_SIZE"] == "1"


def test_one_process_is_its_own_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
    assert distributed.first_object("mine") == "mine"
    assert distributed.first_object(None) is None
    distributed.barrier()


def test_a_sum_over_one_rank_is_a_detached_copy():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    total = distributed.all_reduce_sum(x)
    assert (total.dtype, total.requires_grad) == (torch.float64, False)
    total.add_(1)
    assert torch.equal(x, torch.ones(3, dtype=torch.float64))


def test_buffers_of_one_rank_stay():
    norm = nn.BatchNorm1d(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    distributed.average_buffers(norm)
    assert norm.running_mean.tolist() == [1, 2, 3]
