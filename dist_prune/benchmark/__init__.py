"""The benchmark of a sliced network: how fast it is, next to the dense one and to one built by hand."""

from dist_prune.benchmark.by_hand import by_hand
from dist_prune.benchmark.inference import BY_HAND, DENSE, SLICED, Options, benchmark, measure
from dist_prune.benchmark.outcome import table, write_benchmark

__all__ = [
    "BY_HAND",
    "DENSE",
    "SLICED",
    "Options",
    "benchmark",
    "by_hand",
    "measure",
    "table",
    "write_benchmark",
]
