"""The ranks of a run, and what becomes of them: one that is killed, hangs or fails by itself ends all of them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_prune import distributed
from dist_prune.errors import LocalRankError, RunError, UserError
from dist_prune.runtime.memory import out_of_memory

_CLOSED = re.compile(
    r"Connection (closed|reset)|Broken pipe|Socket closed|connection was closed", re.IGNORECASE
)
_LATE = re.compile(r"Timed out waiting|timed? ?out", re.IGNORECASE)
_ADDRESS = re.compile(r"\[([0-9a-fA-F.:]+)\]:\d+")  # of the other end, as gloo names it
_SHOWN = 4  # nodes in the line
_STATES = {"Z": "is gone", "X": "is gone", "T": "is stopped", "t": "is stopped"}
_SECONDS_TO_DIE = 2.0  # connections close a moment before a process is gone


@dataclass(frozen=True)
class Peer:
    """One rank: a process on a machine."""

    rank: int
    host: str
    pid: int
    address: str = ""  # at which the others reach it
    met: int = 0  # when, in nanoseconds: numbers of processes come again, in containers every time

    @staticmethod
    def this() -> Peer:
        """The rank that this process is."""
        return Peer(
            distributed.rank(), socket.gethostname(), os.getpid(), distributed.address(), time.time_ns()
        )

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def trouble(self) -> str | None:
        """What is wrong with it, as far as can be seen from this machine."""
        if self.host != socket.gethostname():
            return None
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            state = "X" if Path("/proc/self").exists() else ""
        return _STATES.get(state)


@contextlib.contextmanager
def translate_rank_failures(peers: list[Peer], timeout: float) -> Iterator[None]:
    """Turn what this rank meets by itself, a lost rank or a lack of memory, into a LoneError that says so.

    What all ranks raise together passes, and what nobody foresaw. timeout: seconds that ranks wait for one another.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        lost = _lost(error, peers, timeout)
        first = distributed.announce_exit()
        if lost is not None:
            first = _first_here(peers[0]) if first is None else first
            raise LocalRankError(f"{lost}; go on with --resume", told=not first) from error
        if reason := out_of_memory(error):
            raise LocalRankError(f"rank {distributed.rank()} {reason}") from error
        raise


def _lost(error: Exception, peers: list[Peer], timeout: float) -> str | None:
    """Which ranks are lost, if ``error`` says that one is."""
    text = str(error)
    closed, late = _CLOSED.search(text), _LATE.search(text)
    if not isinstance(error, RuntimeError) or not (closed or late):
        return None
    found = _troubles(peers, time.monotonic() + (_SECONDS_TO_DIE if closed else 0))
    if found:
        return f"the run has lost {', '.join(found)}"
    who = _who(_suspects(peers, text))
    if late:
        return f"{who} has not answered for {timeout:g} s (rank_timeout): it hangs, or its node cannot be reached"
    return f"{who} has closed its connection: it has failed, or its node is gone"


def _suspects(peers: list[Peer], text: str) -> list[Peer]:
    """The ranks that an error can be about: those at the address that it names, or all others."""
    others = [peer for peer in peers if peer.rank != distributed.rank()]
    named = set(_ADDRESS.findall(text))
    return [peer for peer in others if peer.address in named] or others


def _who(suspects: list[Peer]) -> str:
    """Them in a few words."""
    if len(suspects) == 1:
        return str(suspects[0])
    hosts = sorted({peer.host for peer in suspects})
    if len(hosts) == 1:
        return f"one of the ranks {', '.join(str(peer.rank) for peer in suspects)} on {hosts[0]}"
    more = f" and {len(hosts) - _SHOWN} more" if len(hosts) > _SHOWN else ""
    return f"a rank on one of {', '.join(hosts[:_SHOWN])}{more}"


def _troubles(peers: list[Peer], deadline: float) -> list[str]:
    while True:
        found = [f"{peer}, which {trouble}" for peer in peers if (trouble := peer.trouble())]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _first_here(keeper: Peer) -> bool:
    """Whether no other rank on this machine has spoken, where ``keeper``, which would know, is gone."""
    mark = Path(tempfile.gettempdir(), f"dist_prune-{keeper.host}-{keeper.pid}-{keeper.met}.left")
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # better said twice than not at all
        return True
    return True
