"""Failures that one line can explain: lost ranks, lack of memory, a run folder that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dist_prune import distributed
from dist_prune.errors import LocalRankError, RunError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SMALLER = (
    "lower train_micro_batch_size_per_gpu in the DeepSpeed config (more accumulation steps make up for it) or "
    "image_size"
)
# Wording of gloo and of torch's store. An error class of their own does not exist: all of these are RuntimeErrors.
_CLOSED = re.compile(
    r"Connection (closed|reset)|Broken pipe|Socket closed|connection was (likely )?closed|connectFullMesh",
    re.IGNORECASE,
)
_LATE = re.compile(r"Timed out waiting|timed? ?out", re.IGNORECASE)
_ADDRESS = re.compile(r"\[([0-9a-fA-F.:]+)\]:\d+")  # of the other end, in gloo's messages
# oneDNN says no more than that, and says "primitive descriptor" for what it cannot compute at all.
_NO_MEMORY = re.compile(r"can(no|')t allocate memory|could not create a primitive(?! descriptor)", re.IGNORECASE)
_MARK = "dist_prune-{}.lost"
_MARK_HOLDS = 60.0  # seconds within which the ranks of a machine notice one loss
_MAX_HOSTS_SHOWN = 4
_STATES = {"Z": "is gone", "X": "is gone", "T": "is stopped", "t": "is stopped"}  # letters of /proc/PID/stat
_SECONDS_TO_DIE = 2.0  # connections close a moment before a process is gone


@dataclass(frozen=True)
class Peer:
    """One rank: a process on a machine."""

    rank: int
    host: str
    pid: int
    address: str = ""  # at which other machines reach it

    @staticmethod
    def this() -> Peer:
        """Describe this process."""
        return Peer(distributed.rank(), socket.gethostname(), os.getpid(), distributed.address())

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def problem(self) -> str | None:
        """Return what is wrong with the process, as far as this machine can see; None if nothing is."""
        if self.host != socket.gethostname():
            return None
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            # Without /proc (not Linux) a missing file says nothing about the process.
            state = "X" if Path("/proc/self").exists() else ""
        return _STATES.get(state)


def meet_ranks(seconds: float) -> list[Peer]:
    """Wait for all ranks and return them; raises ``distributed.NotMet`` if one has ended, or does not come."""
    found = [json.loads(text) for text in distributed.meet(json.dumps(asdict(Peer.this())), seconds)]
    for number, introduction in enumerate(found):
        if "ended" in introduction:
            raise distributed.NotMet(f"rank {number} has ended at its start: {introduction['ended'] or 'no reason'}")
    return [Peer(**introduction) for introduction in found]


@contextlib.contextmanager
def translate_rank_failures(peers: list[Peer], timeout: float) -> Iterator[None]:
    """Turn an error that this rank meets alone, a lost rank or a lack of memory, into a LocalRankError.

    Errors that all ranks raise together pass unchanged, and so do unexpected ones. peers: all ranks, none until they
    have met. timeout: seconds that ranks wait for one another.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        lost = describe_lost_rank(error, peers, timeout)
        # Tell the other ranks in any case: they will notice the loss of this rank and must not report it as a cause.
        first = distributed.announce_exit()
        if lost is not None:
            # Rank 0 keeps the store that announce_exit reads. If rank 0 is the lost one, there is no answer.
            first = first is not False and report_first_on_node()
            raise LocalRankError(lost, reported=not first) from error
        if reason := out_of_memory(error):
            raise LocalRankError(f"rank {distributed.rank()} {reason}") from error
        raise


def out_of_memory(error: Exception) -> str | None:
    """Return advice if ``error`` stands for a lack of memory; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"is out of GPU memory: {_SMALLER}, or use a higher ZeRO stage"
    # torch reports host memory by a plain RuntimeError.
    if isinstance(error, MemoryError) or (isinstance(error, (RuntimeError, OSError)) and _NO_MEMORY.search(str(error))):
        return f"is out of memory: {_SMALLER}, or workers, or start fewer ranks on this machine"
    return None


class CannotWrite(RunError):
    """The run folder is full, or cannot be written to."""

    @classmethod
    def because_of(cls, error: Exception, folder: Path) -> CannotWrite:
        """Convert an OSError, or a SafetensorError, which carries the error number only in its text."""
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else found and int(found[1])
        reason = os.strerror(number) if number else " ".join(str(error).split())
        fix = "fix that"
        if number in _FULL:
            free = "unknown space"
            with contextlib.suppress(OSError):
                free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
            fix = f"make room ({free} free there)"
        return cls(
            f"cannot write to the run folder {folder}: {reason}; {fix}, then continue with --resume: "
            "the existing checkpoints are intact"
        )


def describe_lost_rank(error: Exception, peers: list[Peer], timeout: float) -> str | None:
    """Return a line about the rank that is lost, if the error of a collective says that one is; None for any other."""
    if isinstance(error, distributed.NotMet):
        return str(error)
    text = str(error)
    closed, late = _CLOSED.search(text), _LATE.search(text)
    if not isinstance(error, RuntimeError) or not (closed or late):
        return None
    # A rank of this machine can be looked up, which is more certain than what the message says.
    deadline = time.monotonic() + (_SECONDS_TO_DIE if closed else 0)
    while not (dead := [f"{peer}, which {problem}" for peer in peers if (problem := peer.problem())]):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if dead:
        return f"the run has lost {', '.join(dead)}; continue with --resume"
    if "connectFullMesh" in text:
        return (
            f"rank {distributed.rank()} cannot connect to the others: one of them has ended, or listens at an address "
            "that cannot be reached: set GLOO_SOCKET_IFNAME to the interface between the machines"
        )
    # The ranks that the error can be about: those at the address in its text, or all others.
    others, addresses = [peer for peer in peers if peer.rank != distributed.rank()], set(_ADDRESS.findall(text))
    who = _name([peer for peer in others if peer.address in addresses] or others)
    if late:
        reason = f"has not answered for {timeout:g} s (rank_timeout): it hangs, or its node cannot be reached"
    else:
        reason = "has closed its connection: it has failed, or its node is gone"
    return f"{who} {reason}; continue with --resume"


def report_first_on_node() -> bool:
    """Return True for the first rank of this machine, of one start of the run, that asks; by a marker file."""
    remove_old_marks()
    # Machines may share the folder.
    mark = f"{socket.gethostname()}-{distributed.meeting()}".replace(os.sep, "-")
    try:
        Path(tempfile.gettempdir(), _MARK.format(mark)).touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass  # no room for a marker: two reports are better than none
    return True


def remove_old_marks() -> None:
    """Remove this user's marker files of losses that all ranks have noticed."""
    for mark in Path(tempfile.gettempdir()).glob(_MARK.format("*")):
        with contextlib.suppress(OSError):
            state = mark.lstat()
            if state.st_uid == os.getuid() and time.time() - state.st_mtime > _MARK_HOLDS:
                mark.unlink()


def _name(suspects: list[Peer]) -> str:
    if not suspects:
        return "another rank"
    if len(suspects) == 1:
        return str(suspects[0])
    hosts = sorted({peer.host for peer in suspects})
    if len(hosts) == 1:
        return f"one of the ranks {', '.join(str(peer.rank) for peer in suspects)} on {hosts[0]}"
    more = f" and {len(hosts) - _MAX_HOSTS_SHOWN} more" if len(hosts) > _MAX_HOSTS_SHOWN else ""
    return f"a rank on one of {', '.join(hosts[:_MAX_HOSTS_SHOWN])}{more}"
