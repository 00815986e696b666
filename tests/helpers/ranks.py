"""Real gloo ranks for tests: processes that fail by a time limit and never hang."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Ranks are forked from a process that has imported everything once: importing takes seconds, for each of them.
# The only such context of the tests: one process of pytest has one server, whichever test starts it.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["dist_prune.training.run", "zeus.device.cpu.rapl"])


def as_a_user_starts_it() -> None:
    """Undo what being forked by a server has changed: programs of users fork, and so do libraries in them."""
    gc.freeze()  # else the collector would visit, and thereby copy, everything that the server has imported
    # Locks that are made for other start methods stay in /dev/shm where their process is killed.
    multiprocessing.set_start_method("fork", force=True)


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 300) -> list[Any]:
    """Call ``function(*arguments)`` on each of ``world_size`` gloo ranks and return their results by rank.

    ``function`` must be importable (a module-level function). Raises AssertionError with the first failing
    rank's traceback, or when the ranks are not done within ``seconds``.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        settings = (environment, folder, function, arguments)
        ranks = [FORKSERVER.Process(target=_rank, args=(r, *settings), daemon=True) for r in range(world_size)]
        for process in ranks:
            process.start()
        try:
            _wait(ranks, time.monotonic() + seconds, folder)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        return [pickle.loads((Path(folder) / f"{r}.result").read_bytes()) for r in range(world_size)]


def _wait(ranks: list[Any], deadline: float, folder: str) -> None:
    while any(process.is_alive() for process in ranks):
        failed = [r for r, process in enumerate(ranks) if process.exitcode not in (None, 0)]
        assert not failed, _report(folder, failed[0])
        assert time.monotonic() < deadline, "the ranks did not finish in time"
        time.sleep(0.05)
    failed = [r for r, process in enumerate(ranks) if process.exitcode != 0]
    assert not failed, _report(folder, failed[0])


def _report(folder: str, rank: int) -> str:
    path = Path(folder) / f"{rank}.error"
    return f"rank {rank} failed:\n" + (path.read_text() if path.exists() else "(without a word)")


def _rank(rank: int, environment: dict[str, str], folder: str, function: Callable[..., Any], arguments: Any) -> None:
    as_a_user_starts_it()
    os.environ.clear()  # of the process that this one was forked from, which may be older than the test
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    import torch

    from dist_prune.monitor import style

    torch.set_num_threads(1)
    # Drawing takes a second of processor time, half of such short runs; what a report shows is tested with commands.
    style.png = lambda *_: b""
    try:
        torch.distributed.init_process_group("gloo")
        result = function(*arguments)
        torch.distributed.barrier()
        (Path(folder) / f"{rank}.result").write_bytes(pickle.dumps(result))
    except BaseException:
        (Path(folder) / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
