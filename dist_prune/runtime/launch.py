"""What a launcher gives to a rank, and may take away: the variables by which ranks meet, and itself.

torchrun, the deepspeed launcher and accelerate set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; a bare
``srun`` sets SLURM_* only, and plain ``python`` nothing at all. ``complete_environment`` fills in what is missing, so
that ``distributed`` and DeepSpeed read the same five variables under every launcher.
"""

import os
import re
from pathlib import Path

from dist_prune.errors import UserError, nearest

_SLURM_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
# Ports of SLURM jobs, also in launch/slurm/train.sbatch. They lie below the range (from 32768) out of which systems
# give ports to outgoing connections.
FIRST_PORT, NUM_PORTS = 10000, 20000
_MANY = 10**6  # more ranks than anyone has
_ACCELERATORS = ("cpu", "cuda", "xpu", "npu", "mps", "hpu", "mlu", "sdaa", "supa")  # of DeepSpeed
_DEEPSPEED = "deepspeed.launcher.launch"
_LAUNCHERS = (_DEEPSPEED, "torchrun", "torch.distributed.run", "accelerate")


def complete_environment() -> None:
    """Fill in the rendezvous variables that the launcher left out; torch and DeepSpeed need all five.

    Raises UserError for a value that no launcher sets; ``is_silent`` is False then.
    """
    # Inside an sbatch script, but outside of a step, SLURM_NTASKS describes the job and not this process. A launcher
    # that sets RANK knows better than the variables of the step that it runs in.
    in_step = "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ
    for name, slurm_name in _SLURM_NAMES.items():
        fallback = os.environ.get(slurm_name) if in_step else None
        os.environ.setdefault(name, fallback or ("1" if name == "WORLD_SIZE" else "0"))
    # Ranks of one node meet at an address that other machines cannot reach.
    address = None if os.environ.get("SLURM_STEP_NUM_NODES") == "1" else os.environ.get("SLURM_LAUNCH_NODE_IPADDR")
    os.environ.setdefault("MASTER_ADDR", address or "127.0.0.1")
    # Every rank must compute the same port without asking another, and jobs that share a node must differ.
    port = FIRST_PORT + _number("SLURM_JOB_ID", 0) % NUM_PORTS
    os.environ.setdefault("MASTER_PORT", str(port))
    # torch would wait for ranks that do not exist, or end in frames of C++.
    limits = {
        "WORLD_SIZE": (1, _MANY),
        "RANK": (0, world_size() - 1),
        "LOCAL_RANK": (0, _MANY),
        "MASTER_PORT": (1, 65535),
    }
    for name, (least, most) in limits.items():
        if not least <= _number(name, -1) <= most:
            value = os.environ[name]
            # There are no other ranks that this one could end together with.
            forget_launcher()
            raise UserError(
                f"the environment has {name}={value}, which is no number from {least} to {most}: start with "
                f"a launcher, which sets it, or unset it ({', '.join(limits)}) for a single process"
            )
    accelerator = os.environ.get("DS_ACCELERATOR", "cpu")
    if accelerator not in _ACCELERATORS:
        raise UserError(f"the environment has DS_ACCELERATOR={accelerator}; {nearest(accelerator, _ACCELERATORS)}")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    return int(text) if text.isdecimal() and text.isascii() else default


def is_silent() -> bool:
    """Return True for a rank but 0, which must not repeat an error that rank 0 prints."""
    return 0 < _number("RANK", 0) < _number("WORLD_SIZE", 1)


def forget_launcher() -> None:
    """Unset what a launcher's shell may have left, for a program that is a single process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        os.environ.pop(name, None)


def world_size() -> int:
    """Return the number of ranks that the launcher has started or will start; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the number of this rank among those of its machine; 0 without a launcher."""
    return _number("LOCAL_RANK", 0)


def ranks_per_node() -> int:
    """Return the number of ranks on this machine."""
    # torchrun and deepspeed use different names. Without either, all ranks are taken to be on this machine.
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
    return int(next((os.environ[name] for name in names if os.environ.get(name)), "1"))


class Launcher:
    """The process that started this rank, if it is a launcher; ``is_gone`` once it is no longer the parent.

    Linux only: without /proc no launcher is recognized, and ``is_gone`` stays False.
    """

    def __init__(self) -> None:
        self._pid = os.getppid()
        command = _read(self._pid, "cmdline")
        self._started_us = any(name in command for name in _LAUNCHERS)
        # On one machine ``deepspeed`` is two processes. SIGTERM ends only the upper one, and the lower one, our parent,
        # would let the ranks train on.
        self._above = _parent(self._pid) if _DEEPSPEED in command else None

    def is_gone(self) -> bool:
        """Return True if this rank is an orphan; takes microseconds."""
        if not self._started_us:
            return False
        return os.getppid() != self._pid or (self._above is not None and _parent(self._pid) != self._above)


def refuse_missing_hostfile() -> None:
    """Raise UserError if ``deepspeed`` was given a hostfile that does not exist.

    DeepSpeed only warns and trains on this machine alone: a run of many nodes would become a run of one.
    """
    launch = os.getppid()
    above = _parent(launch) if _DEEPSPEED in _read(launch, "cmdline") else None
    # Read the command line of the ``deepspeed`` command itself: the hostfile is not passed down to the ranks.
    command = "" if above is None else _read(above, "cmdline")
    for path in re.findall(r"(?<!\S)(?:--hostfile|-H)[ =](\S+)", command):
        if not Path(path).is_file():
            raise UserError(f"hostfile {path} not found, so deepspeed would train on this machine alone")


def _parent(pid: int) -> int | None:
    # The command name in parentheses may contain spaces, so the fields are counted from its end.
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text().replace("\0", " ")
    except OSError:
        return ""
