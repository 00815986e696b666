"""Studies on CIFAR-10: named sets of runs with equal data, epochs and seeds, and one file of results for each.

    python benchmarks/study.py NAME --images FOLDER [--arms A B] [--seeds 1 2 3] [--parallel 2]

NAME is one of STUDIES. FOLDER holds {train,test}/CLASS/*.jpg or the original CIFAR-10 files (--source cifar10).
Resumable, on another machine too: what benchmarks/results/study_NAME.json holds is not run again (--again does),
and an interrupted run continues from the work folder. --parallel trains several at a time, each on its share of the
cores, which is faster than one after another on all of them. Accuracies are those of the last epoch on the test
set, never of the best one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAMPLES_PER_SHARD = 1000
SUMMARY = ("accuracy_sliced", "accuracy", "macs", "macs_ratio", "parameters", "agreement")
SUMMARY += ("units_flipped_by_rounding", "target_macs", "budget", "seconds_total")


@dataclass(frozen=True)
class Study:
    """What is trained: for each arm a recipe and its settings; settings for all; training images, None for all."""

    about: str
    arms: dict[str, tuple[str, ...]]
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)
    images: int | None = None


_OWN_SETTINGS = {"vgg16_bn": ("lr=0.01",)}  # as torchvision trains it: its dense layers have no norm


def _budgets(networks: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {
        f"{network}_{kind}_{target}": (
            f"cifar10_resnet20{'_channel' * (kind == 'channel')}_half",
            f"model={network}",
            f"target_macs={target}",
            *_OWN_SETTINGS.get(network, ()),
        )
        for network, kinds in networks.items()
        for kind in kinds
        for target in ("0.3", "0.5", "0.7")
    }


_RIVALS = {
    "uniform_depth": ("cifar10_resnet20_uniform_depth", "target_macs=0.538"),  # what layer gates come to
    "uniform_width": ("cifar10_resnet20_uniform_width",),
    "uniform_channels": ("cifar10_resnet20_uniform_channels",),
}
_ONE_PASS = {"layer": ("cifar10_resnet20_half",), "channel": ("cifar10_resnet20_channel_half",)}
_BOTH = ("layer", "channel")
STUDIES = {
    "resnet20": Study(
        "ResNet-20, 15 epochs: dense, the uniform baselines, and one pass at half of the MACs",
        {"dense": ("cifar10_resnet20_dense",), **_RIVALS, **_ONE_PASS},
        settings=("epochs=15",),
        seeds=(1, 2, 3),
    ),
    "resnet56": Study(
        "ResNet-56, 20 epochs: dense, and one pass at half of the MACs",
        {"dense": ("cifar10_resnet20_dense",), **_ONE_PASS},
        settings=("epochs=20", "model=resnet56"),
    ),
    "heads": Study(
        "Table 4 of arXiv 2302.10798, short: three heads, lambda_polar = 3",
        {head: (f"cifar10_resnet110_head_{head}_short",) for head in ("ste", "gumbel", "bernoulli")},
    ),
    "lambdas": Study(
        "Table 5 and Figure 6 of arXiv 2302.10798, short: lambda_polar 0, 1, 2, 3 and rising",
        {name: (f"cifar10_resnet110_lambda_{name}_short",) for name in ("0", "1", "2", "3", "up")},
    ),
    "budgets": Study(
        "Targets 0.3, 0.5, 0.7 on ResNet-20, 5 epochs", _budgets({"resnet20": _BOTH}), settings=("epochs=5",)
    ),
    "budgets_networks": Study(
        "Targets 0.3, 0.5, 0.7 on other networks: 5,000 images, 10 epochs of 78 steps",
        _budgets({"resnet56": _BOTH, "resnet18": _BOTH, "vgg16_bn": ("channel",)}),
        settings=("global_batch_size=64", "lr=0.1"),
        images=5000,
    ),
}


class Cores:
    """Hands out shares of this machine's cores, so that runs at the same time do not get in each other's way."""

    def __init__(self, shares: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.shares: queue.Queue[list[int]] = queue.Queue()
        for number in range(shares):
            self.shares.put(cores[number::shares])

    def run(self, *words: str | Path) -> None:
        """Run a command in the repository on a share of the cores, and stop if it fails."""
        mine = self.shares.get()
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(len(mine)), "GOMP_SPINCOUNT": "0"}
        command = ["taskset", "-c", ",".join(map(str, mine)), sys.executable, *map(str, words)]
        try:
            subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=True)
        finally:
            self.shares.put(mine)


def make_shards(folder: Path, source: str, images: str | None) -> Path:
    """The shards of CIFAR-10 in ``folder``, made on the first call, for which ``images`` is needed."""
    if not (folder / "_info.json").exists():
        words = ["shards", "make", source, images, "--out", folder]
        words += ["--samples_per_shard", SAMPLES_PER_SHARD]
        Cores(1).run("-c", "from dist_prune.cli.main import main; main()", *words)
    return folder


def _some(shards: Path, images: int | None) -> str:
    """All shards of a folder, or as many of train as hold so many images (they were shuffled when made)."""
    if images is None:
        return str(shards)
    first, *_, last = sorted(path.name for path in shards.glob("*-train-*.tar"))[: images // SAMPLES_PER_SHARD]
    number = slice(-len("000000.tar"), -len(".tar"))
    return f"{shards}/{first[: number.start]}{{{first[number]}..{last[number]}}}.tar"


def read(folder: Path) -> dict[str, Any]:
    """What a finished run measured."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [record for record in records if record["kind"] == "eval"]
    mask = folder / "mask.json"
    sites = json.loads(mask.read_text())["sites"] if mask.exists() else []
    about = json.loads((folder / "config.json").read_text())
    return {
        "seed": about["config"]["seed"],
        **{key: records[-1].get(key) for key in SUMMARY},
        **{key: evals[-1].get(key) for key in ("open_ratio", "r_polar")},
        "accuracy_by_epoch": [round(record["accuracy"], 4) for record in evals],
        "macs_by_epoch": [round(record["macs_ratio"], 3) for record in evals],
        "kept_units": {site["name"]: len(site["kept"]) for site in sites},
        "device": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": about["versions"],
        "git_commit": about["git_commit"],
    }


class Results:
    """The finished runs of a study, in a file that is written after each of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = ROOT / "benchmarks" / "results" / f"study_{name}.json"
        self.lock = threading.Lock()

    def load(self) -> dict[str, list[dict[str, Any]]]:
        """Runs by arm."""
        if not self.path.exists():
            return {}
        return {arm: found["runs"] for arm, found in json.loads(self.path.read_text())["arms"].items()}

    def add(self, arm: str, run: dict[str, Any]) -> None:
        """Write a run into the file, with mean and standard deviation of the sliced network's accuracy."""
        study = STUDIES[self.name]
        with self.lock:
            runs = self.load()
            runs[arm] = [other for other in runs.get(arm, []) if other["seed"] != run["seed"]] + [run]
            arms = {name: _over_seeds(runs[name]) for name in study.arms if name in runs}
            about = {"benchmark": f"study {self.name}", "about": study.about, "data": "CIFAR-10 as JPEG"}
            self.path.write_text(json.dumps({**about, "arms": arms}, indent=1) + "\n")


def _over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [run["accuracy_sliced"] for run in runs]
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    found = sorted(runs, key=lambda run: run["seed"])
    return {"mean": statistics.mean(accuracies), "standard_deviation": spread, "runs": found}


def main() -> None:
    """Make the shards, train every arm with every seed, write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(STUDIES))
    parser.add_argument("--images", help="needed once, to make the shards")
    parser.add_argument("--source", default="imagefolder", choices=("imagefolder", "cifar10"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="also what the results hold already")
    options = parser.parse_args()
    study, results, cores = STUDIES[options.name], Results(options.name), Cores(options.parallel)
    shards = make_shards(options.work.resolve() / "cifar10", options.source, options.images)

    def train(arm: str, seed: int) -> None:
        recipe, *settings = study.arms[arm]
        folder = options.work.resolve() / options.name / f"{arm}-seed{seed}"
        cores.run(
            "launch/train.py", "--recipe", recipe, "--ds_config", "ds_configs/zero2_bf16.json",
            "--data", _some(shards, study.images), "--out", folder, "--resume",
            "--set", f"seed={seed}", *study.settings, *settings,
        )  # fmt: skip
        results.add(arm, read(folder))

    done = {} if options.again else results.load()
    seeds = options.seeds or study.seeds
    with ThreadPoolExecutor(options.parallel) as pool:
        jobs = [
            pool.submit(train, arm, seed)
            for seed in seeds
            for arm in options.arms or study.arms
            if seed not in [run["seed"] for run in done.get(arm, [])]
        ]
    for job in jobs:
        job.result()


if __name__ == "__main__":
    main()
