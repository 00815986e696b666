"""CIFAR-10, ResNet-20, 10 epochs, bf16: dense and one pass with layer gates at about half of the MACs.

    python benchmarks/cifar10_resnet20.py --images FOLDER [--work runs/cifar10_resnet20] [--seed 1]

FOLDER holds {train,test}/CLASS/*.jpg or the original CIFAR-10 files (--source cifar10). Resumable: finished
parts are kept in the work folder. Writes benchmarks/results/cifar10_resnet20.json; accuracies are those of
the last epoch, on the test set, never of the best one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ("cifar10_resnet20_dense", "cifar10_resnet20_half")


def run(*words: str | Path) -> None:
    """Run a command in the repository and stop if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, check=True)


def train(recipe: str, shards: Path, folder: Path, seed: int) -> dict:
    """Train one recipe (or go on with it, or take the finished one) and return what it measured."""
    run(
        "launch/train.py", "--recipe", recipe, "--ds_config", "ds_configs/zero2_bf16.json", "--data", shards,
        "--out", folder, "--resume", "--set", f"seed={seed}",
    )  # fmt: skip
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [record for record in records if record["kind"] == "eval"]
    summary = records[-1]
    keys = (
        "accuracy",
        "accuracy_consensus",
        "accuracy_sliced",
        "macs",
        "macs_ratio",
        "agreement",
        "seconds_total",
    )
    mask = folder / "mask.json"
    sites = json.loads(mask.read_text())["sites"] if mask.exists() else []
    return {
        "recipe": recipe,
        "epochs": evals[-1]["epoch"],
        **{key: summary[key] for key in keys},
        "accuracy_by_epoch": [round(record["accuracy"], 4) for record in evals],
        "open_layers": [site["name"] for site in sites if site["kept"]],
    }


def main() -> None:
    """Make the shards, train both networks, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--source", default="imagefolder", choices=("imagefolder", "cifar10"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "cifar10_resnet20")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    shards = options.work / "shards"
    if not (shards / "_info.json").exists():
        words = ["shards", "make", options.source, options.images, "--out", shards]
        run("-c", "from dist_prune.cli import main; main()", *words)
    results = [
        train(name, shards, options.work / f"{name}-seed{options.seed}", options.seed) for name in RECIPES
    ]
    found = {
        "benchmark": "cifar10_resnet20",
        "data": "CIFAR-10 as JPEG, 50,000 + 10,000 images",
        "precision": "bf16 (torch_autocast)",
        "seed": options.seed,
        "device": "cuda" if _has_gpu() else f"cpu, {os.cpu_count()} cores, {platform.machine()}",
        "runs": results,
    }
    path = ROOT / "benchmarks" / "results" / "cifar10_resnet20.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(path.read_text())


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
