"""Rank helpers without a process group."""

import torch
from torch import nn

from dist_prune import distributed
from dist_prune.gates.heads import BernoulliThreshold


def test_one_process_is_its_own_group(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.broadcast_object({"a": 1}) == {"a": 1}
    assert distributed.first_object("mine") == "mine"
    assert distributed.first_object(None) is None


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


def test_buffers_that_all_ranks_compute_alike_are_not_averaged(monkeypatch):
    """An average would hide a rank whose value is wrong."""
    head, norm = BernoulliThreshold(3), nn.BatchNorm1d(3)
    head.mean.fill_(1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda total: 4 * total)  # another rank has three times as much
    monkeypatch.setattr(distributed.dist, "broadcast", lambda *_, **__: None)
    buffers = {name: buffer.clone() for name, buffer in head.named_buffers()}
    distributed.average_buffers(nn.Sequential(head, norm))
    assert norm.running_var.tolist() == [2, 2, 2]
    assert buffers
    for name, buffer in head.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
