"""All collectives and rank helpers (a leaf). Everything works unchanged without a process group.

Launchers set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; ``runtime.launch`` adds what they leave out.
"""

import contextlib
import errno
import ipaddress
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_prune.errors import UserError

_MAX_SHOWN = 4  # ranks in a message


class NotMet(RuntimeError):
    """The ranks cannot meet; the message is one line."""


_store: dist.Store | None = None  # on rank 0 (or torchrun's agent); the ranks have met there
_meeting = ""  # random name of that, once this rank has reached the store


def meet(introduction: str, seconds: float) -> list[str]:
    """Connect to the store of rank 0 and return what every rank introduces itself with, in rank order.

    Raises:
        UserError: rank 0 cannot listen on the rendezvous port.
        NotMet: a rank does not come within ``seconds``, or rank 0 is gone.
    """
    global _store, _meeting
    if dist.is_initialized():
        # A program that trains several times in one process has met before. The old store holds the old names.
        return gather_objects(introduction)
    if os.environ["WORLD_SIZE"] == "1":
        # A single rank meets no other, so a port that another program uses must not stop it.
        _store = dist.HashStore()
        return [introduction]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        with _silent():
            # torchrun keeps one store over its restarts; without a prefix, ranks would find those of dead ones.
            _store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _connect(seconds))
            if rank() == 0:
                _store.set("meeting", secrets.token_hex(8))
            _meeting = _store.get("meeting").decode()
            missing = _introduce(_store, introduction, seconds)
            met = [] if missing else [text.decode() for text in _store.multi_get(_names())]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if "EADDRINUSE" in reason or getattr(error, "errno", None) == errno.EADDRINUSE:
            fix = "that port is in use; choose another with the launcher's --master_port, or MASTER_PORT"
            raise UserError(f"rank {rank()} cannot meet the others at {place}: {fix}") from error
        if isinstance(error, dist.DistError):
            reason = "rank 0 cannot be reached there: it has not started, it has ended, or its node is gone"
        raise NotMet(f"rank {rank()} cannot meet the others at {place}: {reason}") from error
    if missing:
        who = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:_MAX_SHOWN]))}"
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        came = f"{who}{more} did not come within {seconds:g} s (rank_timeout)"
        raise NotMet(f"rank {rank()} cannot meet the others at {place}: {came}")
    return met


def meeting() -> str:
    """Return a text that the ranks of this machine have in common, and no other start; even if they have not met."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    return _meeting or "-".join([*(os.environ.get(name, "") for name in names), str(os.getppid())])


def _names() -> list[str]:
    return [f"rank-{number}" for number in range(int(os.environ["WORLD_SIZE"]))]


def _introduce(store: dist.Store, introduction: str, seconds: float) -> list[int]:
    """Tell all ranks and wait for all; return the ranks that are missing after ``seconds``."""
    names, end, pause = _names(), time.monotonic() + seconds, 0.02
    store.set(names[rank()], introduction)
    # Not the store's own waiting, which tells neither who is missing nor, of many, that one has come.
    while not store.check(names):
        if time.monotonic() > end:
            return [number for number, name in enumerate(names) if not store.check([name])]
        time.sleep(pause)
        pause = min(1.5 * pause, 2.0)
    return []


def _connect(seconds: float) -> dist.Store:
    host, port, size = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    _resolve(host, seconds)
    # torchrun's agent has a store already; it listens on all interfaces, whatever the address.
    serves = rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listener = None
    if serves and is_loopback(host):
        # torch would listen on all interfaces, too. A name is not enough: on its own machine, that of a node of many
        # may stand for a loopback address.
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    return dist.TCPStore(
        host,
        port,
        size,
        serves,
        timedelta(seconds=seconds),
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )


def is_loopback(host: str) -> bool:
    """Return True if only processes of this machine can connect to ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def start(backend: str, seconds: float) -> None:
    """Create the process group of ranks that have met; each waits up to ``seconds`` for another in any collective."""
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    interfaces = [name for _, name in socket.if_nameindex()]
    if is_loopback(os.environ["MASTER_ADDR"]) and "lo" in interfaces:
        # gloo would listen at the address of the host's name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with _silent():
        dist.init_process_group(backend, store=_store, rank=number, world_size=size, timeout=timedelta(seconds=seconds))


def _resolve(host: str, seconds: float) -> None:
    """Wait until the name of rank 0's machine is known: that of a pod appears a while after it was started."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > end:
                raise NotMet(f"rank {rank()} cannot meet the others: {host}: {error.strerror}") from error
        time.sleep(1)


def limit_waiting(seconds: float) -> None:
    """Set the time limit of collectives in every process group, also in those that DeepSpeed has created."""
    # The private one was the only one before torch 2.15.
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    for group in list(dist.distributed_c10d._world.pg_map):
        set_timeout(timedelta(seconds=seconds), group)


def rank() -> int:
    """Return the global rank of this process; 0 without a process group and without a launcher."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def address() -> str:
    """Return the address at which other ranks reach this machine; "" for a single rank, or if it is unknown."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    master, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "1"))
    try:
        family, kind, *_, place = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            # Connecting a datagram socket sends nothing; it only selects the interface towards rank 0.
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def world_size() -> int:
    """Return the number of ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return True on the one rank that prints and writes: global rank 0, not one per node."""
    return rank() == 0


def start_all_reduce(tensor: Tensor) -> dist.Work | None:
    """Start to sum ``tensor`` over all ranks, in place; one collective, none on a single rank.

    The sum keeps the dtype: pass fp32 or wider for counts (bf16 sums saturate at 256).

    Returns:
        What to ``wait`` for before reading the sum, if anything; on GPUs the device waits, not the program.
    """
    return dist.all_reduce(tensor, async_op=True) if world_size() > 1 else None


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of ``tensor`` over all ranks, detached."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def broadcast_object(value: Any) -> Any:
    """Return rank 0's ``value`` on every rank (any picklable object)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def first_object(value: Any) -> Any:
    """Return on every rank the value of the first rank whose value is not None; None if there is none."""
    return next((found for found in gather_objects(value) if found is not None), None)


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks (any picklable objects), in rank order, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def all_equal(number: int, device: torch.device) -> bool:
    """Return True if all ranks have the same ``number`` (up to 62 bits); one small collective."""
    # The maximum and the negated minimum cancel if, and only if, all numbers are equal.
    extremes = torch.tensor([number, -number], device=device)
    if world_size() > 1:
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    return bool(extremes.sum() == 0)


def announce_exit(seconds: float = 5.0) -> bool | None:
    """Tell the other ranks that this one ends alone.

    Returns:
        True for the first rank that does; None if the store on rank 0 does not answer.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    answers: list[bool] = []
    store = _store
    if store is None:
        if not dist.is_initialized():
            return None
        store = dist.distributed_c10d._get_default_store()

    def ask() -> None:
        with contextlib.suppress(RuntimeError):  # rank 0, which keeps the store, is gone
            answers.append(store.add("dist_prune/left", 1) == 1)

    # In a thread that may be abandoned: if rank 0 hangs or its node is lost, torch waits until the system gives up the
    # connection, for a quarter of an hour, whatever timeout the store has.
    with _silent():
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(timeout=seconds)
    return answers[0] if answers else None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discard standard error, where torch prints C++ traces of a lost connection."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def average_buffers(module: nn.Module) -> None:
    """Make the buffers of all ranks equal, in place: floats are averaged, integers are rank 0's.

    Engines synchronize parameters only, so batch-norm statistics differ between ranks after training steps; their
    average uses the data of every rank. Two collectives, whatever the number of buffers. The buffers of modules with
    ``is_replicated`` are skipped: they are equal on all ranks, and averaging would hide a difference.
    """
    if world_size() == 1:
        return
    modules = [m for m in module.modules() if not getattr(m, "is_replicated", False)]
    buffers = {id(buffer): buffer for m in modules for buffer in m.buffers(recurse=False)}.values()
    for floating in (True, False):
        group = [buffer for buffer in buffers if buffer.is_floating_point() == floating]
        if not group:
            continue
        flat = torch.cat([buffer.detach().double().flatten() for buffer in group])
        if floating:
            flat = all_reduce_sum(flat) / world_size()
        else:
            dist.broadcast(flat, src=0)
        for buffer, values in zip(group, flat.split([buffer.numel() for buffer in group]), strict=True):
            buffer.detach().copy_(values.view_as(buffer))


def shutdown(seconds: float = 60.0, reason: str = "") -> None:
    """Wait for the other ranks before exiting, because launchers kill the remaining ranks when the first one exits.

    Args:
        seconds: limit of the wait; then this rank exits alone.
        reason: why this rank ends, for ranks that it has not met yet.
    """
    try:
        if not dist.is_initialized() and _store is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            meet(json.dumps({"ended": reason}), seconds)
        if world_size() > 1:
            monitored = dist.get_backend() == "gloo"
            with _silent():
                dist.monitored_barrier(timeout=timedelta(seconds=seconds)) if monitored else dist.barrier()
    except (RuntimeError, ValueError, UserError):
        pass  # the other ranks are gone
    if dist.is_initialized():
        dist.destroy_process_group()
