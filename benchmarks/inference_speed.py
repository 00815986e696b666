"""Inference at half the MACs: sliced networks against the dense one and a reference network. Prints a JSON line a case.

    python benchmarks/inference_speed.py [--seconds 15] [--cases NAME ...] [--out FILE]

Masks are fixed, the same share of every stage or site, and weights are random: neither changes the speed.
The three networks of a case are time-interleaved in one process, so that a drift in speed affects all of them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from dist_prune import build_model
from dist_prune.benchmark.inference import Options, measure
from dist_prune.gates.insertion import find_sites
from dist_prune.methods.baselines import uniform_depth
from dist_prune.models.build import architecture_of
from dist_prune.pruning.costs import Costs, unit_costs
from dist_prune.pruning.slicing import slice_network

Kept = dict[str, tuple[int, ...]]


class Case(NamedTuple):
    """A network, what is taken out of it, and the batch size that it is measured at."""

    model: str
    classes: int
    side: int
    batch: int
    kind: str
    keep: Callable[[Costs], Kept]


def half_by_depth(costs: Costs) -> Kept:
    """The layers that stay at half the MACs."""
    return uniform_depth(costs, 0.5)


def half_by_width(round_to: int) -> Callable[[Costs], Kept]:
    """The channels that stay: the same share of each site, rounded up, nearest to half the MACs."""

    def keep(costs: Costs) -> Kept:
        options = []
        for n in range(1, 65):
            widths = {site.name: -(-max(1, site.units * n // 64) // round_to) * round_to for site in costs.sites}
            options.append({site.name: tuple(range(min(site.units, widths[site.name]))) for site in costs.sites})
        return min(options, key=lambda kept: abs(costs.of(kept) / costs.dense - 0.5))

    return keep


CASES = {
    "resnet56, layers": Case("resnet56", 10, 32, 128, "layer", half_by_depth),
    "resnet56, channels": Case("resnet56", 10, 32, 128, "channel", half_by_width(1)),
    "resnet50, layers": Case("resnet50", 1000, 224, 8, "layer", half_by_depth),
    "resnet50, channels": Case("resnet50", 1000, 224, 8, "channel", half_by_width(1)),
    "resnet50, channels, round_to 8": Case("resnet50", 1000, 224, 8, "channel", half_by_width(8)),
}


def run(name: str, seconds: float, channels_last: bool) -> dict:
    """Measure one case in one memory layout."""
    case = CASES[name]
    torch.manual_seed(1)
    plain = build_model(case.model, num_classes=case.classes).eval()
    shape = (3, case.side, case.side)
    costs = unit_costs(plain, shape, find_sites(plain, case.kind))
    kept = case.keep(costs)
    small = slice_network(plain, kept)[0].eval()
    options = Options(batches=(case.batch,), seconds=seconds, channels_last=channels_last)
    share = round(costs.of(kept) / costs.dense, 4)
    return {"case": name, "macs_ratio": share, **measure(small, architecture_of(plain), kept, shape, options)}


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15, help="of measuring for each case and layout")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    setting = {
        "benchmark": "inference_speed",
        "command": shlex.join(["benchmarks/inference_speed.py", *arguments]),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
    }
    runs = []
    for name in options.cases:
        for channels_last in (False, True):
            runs.append(run(name, options.seconds, channels_last))
            print(json.dumps(runs[-1]), flush=True)
            if options.out:  # after each, so that an interrupted measurement leaves what it has
                options.out.write_text(json.dumps({**setting, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
