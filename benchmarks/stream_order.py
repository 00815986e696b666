"""Stream order against exact order, on CIFAR-10: accuracy and images/s of the same short trainings, as one JSON object.

    python benchmarks/stream_order.py SHARDS --work FOLDER [--epochs 4] [--seeds 2] [--workers 1]

SHARDS is a folder of shards with an index. A dense ResNet-20 trains in either order, alternating, so that a machine
whose speed drifts slows both. The index says the length of an epoch; in stream order nothing else of it is used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ORDERS = ("exact", "stream")


def train(shards: str, out: Path, order: str, seed: int, epochs: int, workers: int) -> dict[str, Any]:
    """Train one network; return its accuracy and the images/s of its epochs but the first."""
    settings = [f"data.order={order}", f"seed={seed}", f"epochs={epochs}", f"workers={workers}"]
    words = [sys.executable, "launch/train.py", "--ds_config", "ds_configs/zero2_bf16.json", "--out", str(out)]
    words += ["--recipe", "cifar10_resnet20_dense", "--data", shards, "--set", *settings]
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (summary,) = [record for record in records if record["kind"] == "summary"]
    speeds = [record["images_per_second"] for record in records if record["kind"] == "eval"]
    return {"accuracy": summary["accuracy_sliced"], "images_per_second": statistics.median(speeds[1:] or speeds)}


def main() -> None:
    """Train in both orders and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    for seed in range(1, options.seeds + 1):
        for order in ORDERS:
            out = options.work / f"{order}-{seed}"
            found[order].append(train(options.shards, out, order, seed, options.epochs, options.workers))
            print(json.dumps({"order": order, "seed": seed, **found[order][-1]}), file=sys.stderr)
    speeds = {order: [run["images_per_second"] for run in found[order]] for order in ORDERS}
    result: dict[str, Any] = {"benchmark": "stream order", "network": "ResNet-20, dense", "data": "CIFAR-10"}
    result |= {"epochs": options.epochs, "seeds": options.seeds, "workers": options.workers}
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result |= {"torch": version("torch"), "webdataset": version("webdataset"), "runs": found}
    result["speed_ratio"] = statistics.median(b / a for a, b in zip(*(speeds[order] for order in ORDERS), strict=True))
    for order in ORDERS:
        result[f"accuracy_{order}"] = statistics.mean(run["accuracy"] for run in found[order])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
