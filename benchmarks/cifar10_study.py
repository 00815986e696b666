"""CIFAR-10, ResNet-20, 15 epochs, bf16, three seeds: dense, one pass at half of the MACs, and the honest rivals.

    python benchmarks/cifar10_study.py --images FOLDER [--work runs/cifar10_study] [--arms dense layer] [--seeds 1 2 3]

FOLDER holds {train,test}/CLASS/*.jpg or the original CIFAR-10 files (--source cifar10). Equal epochs, data,
optimizer and seeds for all arms. Resumable, on another machine too: what benchmarks/results/cifar10_study.json
holds is not run again (--again does), and an interrupted run goes on from the work folder. Accuracies are those
of the last epoch on the test set, never of the best one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cifar10_study.json"
COMMON = ("epochs=15",)
ARMS: dict[str, tuple[str, ...]] = {
    "dense": ("cifar10_resnet20_dense",),
    "uniform_depth": ("cifar10_resnet20_half", "method=uniform_depth", "target_macs=0.538"),
    "uniform_width": ("cifar10_resnet20_half", "method=uniform_width", "target_macs=0.5"),
    "uniform_channels": ("cifar10_resnet20_half", "method=uniform_channels", "target_macs=0.5"),
    "layer": ("cifar10_resnet20_half",),
    "channel": ("cifar10_resnet20_channel_half",),
}
SUMMARY = ("accuracy_sliced", "accuracy", "macs", "macs_ratio", "parameters", "agreement")
SUMMARY += ("units_flipped_by_rounding", "seconds_total")


def run(*words: str | Path) -> None:
    """Run a command in the repository and stop if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, check=True)


def train(arm: str, shards: Path, folder: Path, seed: int) -> None:
    """Train one arm with one seed, go on with it, or find it finished."""
    recipe, *settings = ARMS[arm]
    run(
        "launch/train.py", "--recipe", recipe, "--ds_config", "ds_configs/zero2_bf16.json", "--data", shards,
        "--out", folder, "--resume", "--set", f"seed={seed}", *COMMON, *settings,
    )  # fmt: skip


def read(folder: Path) -> dict[str, Any]:
    """What a finished run measured."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [record for record in records if record["kind"] == "eval"]
    mask = folder / "mask.json"
    sites = json.loads(mask.read_text())["sites"] if mask.exists() else []
    return {
        "seed": json.loads((folder / "config.json").read_text())["config"]["seed"],
        **{key: records[-1][key] for key in SUMMARY},
        "accuracy_by_epoch": [round(record["accuracy"], 4) for record in evals],
        "macs_by_epoch": [round(record["macs_ratio"], 3) for record in evals],
        "kept_units": {site["name"]: len(site["kept"]) for site in sites},
        "device": f"{os.cpu_count()} cores, {platform.machine()}",
    }


def load() -> dict[str, list[dict[str, Any]]]:
    """The finished runs of each arm so far."""
    if not RESULTS.exists():
        return {}
    return {arm: found["runs"] for arm, found in json.loads(RESULTS.read_text())["arms"].items()}


def save(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Write all runs, with mean and standard deviation of the sliced network's accuracy over the seeds."""
    arms = {}
    for arm in (arm for arm in ARMS if runs.get(arm)):
        accuracies = [run["accuracy_sliced"] for run in runs[arm]]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        found = sorted(runs[arm], key=lambda run: run["seed"])
        arms[arm] = {"mean": statistics.mean(accuracies), "standard_deviation": spread, "runs": found}
    study = {
        "benchmark": "cifar10_study",
        "data": "CIFAR-10 as JPEG, 50,000 + 10,000 images",
        "network": "resnet20, option B, 41.22 M MACs",
        "training": "15 epochs of one-cycle, batch 256, bf16 (torch_autocast), test accuracy of the last epoch",
        "arms": arms,
    }
    RESULTS.write_text(json.dumps(study, indent=2) + "\n")


def main() -> None:
    """Make the shards, train every arm with every seed, write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="needed once, to make the shards")
    parser.add_argument("--source", default="imagefolder", choices=("imagefolder", "cifar10"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "cifar10_study")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--again", action="store_true", help="also what the results hold already")
    options = parser.parse_args()
    shards = options.work / "shards"
    if not (shards / "_info.json").exists():
        words = ["shards", "make", options.source, options.images, "--out", shards]
        run("-c", "from dist_prune.cli import main; main()", *words)
    for seed in options.seeds:
        for arm in options.arms:
            runs = load()
            others = [run for run in runs.get(arm, []) if run["seed"] != seed]
            if len(others) < len(runs.get(arm, [])) and not options.again:
                continue
            folder = options.work / f"{arm}-seed{seed}"
            train(arm, shards, folder, seed)
            runs[arm] = [*others, read(folder)]
            save(runs)


if __name__ == "__main__":
    main()
