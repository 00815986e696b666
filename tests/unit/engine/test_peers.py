"""Which errors say that a rank is lost or that memory is out, and which have to stay what they are."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from dist_prune.engine.memory import out_of_memory
from dist_prune.engine.peers import Peer, ending_alone
from dist_prune.errors import LoneError, UserError

CLOSED = "[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:24513"
LATE = "[.../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation to complete"


def meets(error: Exception, peers: list[Peer]) -> None:
    with ending_alone(peers, timeout=6):
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
        LoneError, match=rf"has lost rank 1 \(process {dead.pid} on .*\), which is gone; go on with"
    ):
        meets(RuntimeError(CLOSED), [Peer.this(), dead])


def test_of_ranks_on_other_machines_only_the_machine_is_known():
    with pytest.raises(LoneError, match="has failed here, or on far1, far2; go on"):
        meets(RuntimeError(CLOSED), [Peer.this(), Peer(1, "far2", 1), Peer(2, "far1", 1)])


def test_a_rank_that_does_not_answer_is_told_with_the_time_that_it_had():
    with pytest.raises(LoneError, match=r"another rank has not answered for 6 s \(rank_timeout\)"):
        meets(RuntimeError(LATE), [Peer.this(), Peer(1, socket.gethostname(), os.getppid())])


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError(CLOSED), UserError("yours")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as met:
        meets(error, [Peer.this()])
    assert met.value is error


def test_memory_that_the_system_refuses_names_the_setting():
    with (
        pytest.raises(LoneError, match="rank 0 is out of memory: lower train_micro_batch_size_per_gpu"),
        ending_alone([Peer.this()], 6),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    assert "GPU memory" in out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(RuntimeError("memory format option is only supported by strided tensors")) is None
