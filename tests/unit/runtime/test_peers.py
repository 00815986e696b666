"""Errors about lost ranks and lack of memory are translated; all others pass unchanged."""

import errno
import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from dist_prune.errors import LocalRankError, UserError
from dist_prune.runtime.failures import (
    Peer,
    out_of_memory,
    remove_old_marks,
    report_first_on_node,
    translate_rank_failures,
)

CLOSED = "[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:24513"
LATE = "[.../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation to complete"


def meets(error: Exception, peers: list[Peer]) -> None:
    with translate_rank_failures(peers, timeout=6):
        raise error


@pytest.fixture
def dead():
    """A zombie: a process that has ended and that its parent has not waited for, as a launcher may not."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    while Peer(1, socket.gethostname(), process.pid).problem() is None:
        pass
    yield Peer(1, socket.gethostname(), process.pid)
    process.wait()


def test_a_closed_connection_names_the_rank_whose_process_is_gone(dead):
    with pytest.raises(
        LocalRankError, match=rf"has lost rank 1 \(process {dead.pid} on .*\), which is gone; continue with"
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
def test_a_rank_on_another_machine_is_found_by_the_address_in_the_error(address, named):
    error = RuntimeError(CLOSED.replace("127.0.0.1", address))
    with pytest.raises(LocalRankError, match=f"^{named} its connection: it has failed, or its node is gone; continue"):
        meets(error, [Peer.this(), *FAR])


def test_of_many_machines_some_are_named():
    many = [Peer(rank, f"far{rank:02}", 1) for rank in range(1, 64)]
    with pytest.raises(LocalRankError, match=r"^a rank on one of far01, far02, far03, far04 and 59 more has closed"):
        meets(RuntimeError(CLOSED), [Peer.this(), *many])


def test_a_rank_that_does_not_answer_is_named_with_the_time_limit():
    with pytest.raises(LocalRankError, match=r"^rank 1 \(process .*\) has not answered for 6 s \(rank_timeout\): it "):
        meets(RuntimeError(LATE), [Peer.this(), Peer(1, socket.gethostname(), os.getppid())])


def test_one_rank_of_a_machine_reports_and_again_in_the_next_run_of_the_same_shell(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert [report_first_on_node() for _ in range(2)] == [True, False]
    (mark,) = tmp_path.iterdir()
    os.utime(mark, (time.time() - 100,) * 2)
    assert [report_first_on_node() for _ in range(2)] == [True, False]


def test_a_start_removes_marks_of_losses_long_ago_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    old, new, others = (tmp_path / name for name in ("dist_prune-a.lost", "dist_prune-b.lost", "dist_prune.lost.txt"))
    for path in (old, new, others):
        path.touch()
    for path in (old, others):
        os.utime(path, (time.time() - 100,) * 2)
    remove_old_marks()
    assert sorted(tmp_path.iterdir()) == sorted([new, others])


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError(CLOSED), UserError("yours")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as met:
        meets(error, [Peer.this()])
    assert met.value is error


def test_lack_of_memory_names_the_setting_to_lower():
    with (
        pytest.raises(LocalRankError, match="rank 0 is out of memory: lower train_micro_batch_size_per_gpu"),
        translate_rank_failures([Peer.this()], 6),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    assert "GPU memory" in out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert "is out of memory" in out_of_memory(RuntimeError("could not create a primitive"))
    assert "is out of memory" in out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert out_of_memory(RuntimeError("could not create a primitive descriptor for a pooling primitive")) is None
    assert out_of_memory(RuntimeError("memory format option is only supported by strided tensors")) is None
