"""Which errors say that a rank is lost or that memory is out, and which have to stay what they are."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from dist_prune.errors import LocalRankError, UserError
from dist_prune.runtime.memory import out_of_memory
from dist_prune.runtime.peers import Peer, _first_here, translate_rank_failures

CLOSED = "[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:24513"
LATE = "[.../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation to complete"


def meets(error: Exception, peers: list[Peer]) -> None:
    with translate_rank_failures(peers, timeout=6):
        raise error


@pytest.fixture
def dead():
    """A process that has ended and that nobody has asked for its exit code yet, as a launcher's may be."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    while Peer(1, socket.gethostname(), process.pid).trouble() is None:
        pass
    yield Peer(1, socket.gethostname(), process.pid)
    process.wait()


def test_a_closed_connection_names_the_rank_whose_process_is_gone(dead):
    with pytest.raises(
        LocalRankError, match=rf"has lost rank 1 \(process {dead.pid} on .*\), which is gone; go on with"
    ):
        meets(RuntimeError(CLOSED), [Peer.this(), dead])


FAR = [Peer(1, "far2", 7, "10.0.0.2"), Peer(2, "far1", 8, "10.0.0.1"), Peer(3, "far1", 9, "10.0.0.1")]


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("10.0.0.2", r"rank 1 \(process 7 on far2\) has closed"),
        ("10.0.0.1", "one of the ranks 2, 3 on far1 has closed"),
        ("10.9.9.9", "a rank on one of far1, far2 has closed"),
    ],
)
def test_of_ranks_on_other_machines_those_are_named_at_whose_address_the_connection_ended(address, named):
    error = RuntimeError(CLOSED.replace("127.0.0.1", address))
    with pytest.raises(
        LocalRankError, match=f"^{named} its connection: it has failed, or its node is gone; go on"
    ):
        meets(error, [Peer.this(), *FAR])


def test_of_many_machines_some_are_named():
    many = [Peer(rank, f"far{rank:02}", 1) for rank in range(1, 64)]
    with pytest.raises(
        LocalRankError, match=r"^a rank on one of far01, far02, far03, far04 and 59 more has closed"
    ):
        meets(RuntimeError(CLOSED), [Peer.this(), *many])


def test_a_rank_that_does_not_answer_is_told_with_the_time_that_it_had():
    with pytest.raises(
        LocalRankError, match=r"^rank 1 \(process .*\) has not answered for 6 s \(rank_timeout\): it "
    ):
        meets(RuntimeError(LATE), [Peer.this(), Peer(1, socket.gethostname(), os.getppid())])


def test_one_rank_of_a_machine_speaks_in_each_run_though_numbers_of_processes_come_again(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    earlier, now = Peer(0, "far", 14, met=1), Peer(0, "far", 14, met=2)
    assert [_first_here(earlier), _first_here(earlier), _first_here(now)] == [True, False, True]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError(CLOSED), UserError("yours")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as met:
        meets(error, [Peer.this()])
    assert met.value is error


def test_memory_that_the_system_refuses_names_the_setting():
    with (
        pytest.raises(LocalRankError, match="rank 0 is out of memory: lower train_micro_batch_size_per_gpu"),
        translate_rank_failures([Peer.this()], 6),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    assert "GPU memory" in out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("memory format option is only supported by strided tensors")) is None
