"""Time-interleaved measurement of several networks, and the peak memory of a forward pass."""

import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dist_prune.measure.energy import EnergyMeter

WARM_UP, LEAST_ROUNDS, MOST_ROUNDS = 3, 5, 1000
STRETCHES, LEAST_SECONDS = 3, 1.0  # of energy: counters move a few times a second only


def time_interleaved(
    runs: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Return the seconds of each round of ``runs``, each in another order, for about ``seconds`` after a warm-up."""
    # A machine whose speed drifts slows all networks of a round alike.
    clock = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    for _ in range(WARM_UP):
        for run in runs.values():
            run()
    rounds: list[dict[str, float]] = []
    names, began = list(runs), time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - began < seconds):
        first = len(rounds) % len(names)
        rounds.append({name: clock(runs[name]) for name in names[first:] + names[:first]})
    return {name: [taken[name] for taken in rounds] for name in names}


def gain(seconds: Sequence[float], over: Sequence[float]) -> float:
    """Return the speed-up over another network: the median over rounds, each of which timed both."""
    return statistics.median(b / a for a, b in zip(seconds, over, strict=True))


def joules_of(
    runs: Mapping[str, Callable[[], object]], device: torch.device, meter: EnergyMeter, seconds: float
) -> dict[str, float | None]:
    """Joules of one call of each of ``runs``, the median over stretches that take turns for about ``seconds`` in all.

    The readings while a network runs count as its own, the idle machine included. None: not measured; without
    any sensor nothing runs.
    """
    if not meter.ranks:
        return dict.fromkeys(runs)
    stretch = max(LEAST_SECONDS, seconds / (STRETCHES * len(runs)))
    taken = [{name: _joules(run, device, meter, stretch) for name, run in runs.items()} for _ in range(STRETCHES)]
    found = {name: [one[name] for one in taken] for name in runs}
    return {name: None if None in joules else statistics.median(joules) for name, joules in found.items()}  # type: ignore[type-var]


def _joules(run: Callable[[], object], device: torch.device, meter: EnergyMeter, seconds: float) -> float | None:
    meter.take()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        run()
        calls += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    joules = meter.take().joules
    return None if joules is None else joules / calls


def _cpu_seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _cuda_seconds(run: Callable[[], object]) -> float:
    """Time between two events in the stream: kernels run after the call that starts them has returned."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that ``run`` makes, as many as live at once at most; what lived before is not counted.

    On the CPU these are the tensors that torch's operations return: what a library takes for itself within one
    operation cannot be seen from here. On a GPU it is the peak of torch's allocator.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Living() as living:
        run()
    return living.peak


class _Living(TorchDispatchMode):
    """Counts the bytes of all storages that are allocated inside it, until each is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = _storages((args, kwargs))
        out = func(*args, **(kwargs or {}))
        for key, storage in _storages(out).items():
            if key not in old and key not in self._known:
                self._known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, key, storage.nbytes())
        return out

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
