"""Time, memory and accuracy of whole runs on CIFAR-10: one pass at half of the MACs against dense training.

    python benchmarks/training_time.py --images FOLDER [--models resnet20 resnet56] [--epochs 20] [--repeats 2]

Both train at the same time, each on its half of the cores, and swap cores in the next repetition, so that
other load slows both. The time is that of the whole run, evaluations, votes and collapse included; the
one that ends first frees its cores, which favors the dense network. Memory is the
peak of a process that resumes from the last checkpoint but one for a few steps, which for one pass lies behind the
collapse. Results: benchmarks/results/training_time.json, after each repetition; what it holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from study import ROOT, make_shards, read

PATH = ROOT / "benchmarks" / "results" / "training_time.json"
ARMS = {"dense": "cifar10_resnet20_dense", "one pass": "cifar10_resnet20_half"}
MEMORY_STEPS = 20


def train(cores: list[int], recipe: str, model: str, epochs: int, shards: Path, out: Path, *words: str) -> int:
    """Run the program on some cores; its peak memory in bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(len(cores)), "GOMP_SPINCOUNT": "0"}
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "launch/train.py", "--recipe", recipe]
    command += ["--ds_config", "ds_configs/zero2_bf16.json", "--data", str(shards), "--out", str(out), *words]
    command += ["--set", f"model={model}", f"epochs={epochs}", "keep_checkpoints=2"]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise SystemExit(f"{recipe} ended with code {process.returncode}")
    return usage.ru_maxrss * 1024


def repetition(number: int, model: str, epochs: int, shards: Path, work: Path) -> dict[str, Any]:
    """Train both at the same time; what each measured, and the ratio of their times."""
    cores = sorted(os.sched_getaffinity(0))
    halves = [cores[::2], cores[1::2]][:: 1 if number % 2 else -1]
    places = dict(zip(ARMS, halves, strict=True))

    def run(arm: str) -> dict[str, Any]:
        folder = work / f"{model}-{arm.replace(' ', '_')}-{number}"
        train(places[arm], ARMS[arm], model, epochs, shards, folder, "--resume")
        found = read(folder)
        wanted = ("accuracy_sliced", "macs_ratio", "seconds_total", "agreement", "macs_by_epoch")
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        ends = [record["seconds"] for record in records if record["kind"] == "eval"]
        seconds = [round(end - begin, 1) for begin, end in zip([0.0, *ends], ends, strict=False)]
        return {**{key: found[key] for key in wanted}, "seconds_by_epoch": seconds}

    with ThreadPoolExecutor(len(ARMS)) as pool:
        found = dict(zip(ARMS, pool.map(run, ARMS), strict=True))
    ratio = found["one pass"]["seconds_total"] / found["dense"]["seconds_total"]
    return {"repetition": number, "time_ratio": round(ratio, 4), **found}


def memory(model: str, epochs: int, shards: Path, work: Path) -> dict[str, float]:
    """Peak memory in MB of a few steps from the last checkpoint but one, one network after the other."""
    peaks, cores = {}, sorted(os.sched_getaffinity(0))
    for arm, recipe in ARMS.items():
        source, copy = work / f"{model}-{arm.replace(' ', '_')}-1", work / "memory"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        (copy / "status.json").unlink()  # a finished run would not continue
        newest = sorted((copy / "checkpoints").glob("step-*"))[-1]
        shutil.rmtree(newest)
        words = ("--resume", "--max_steps", str(MEMORY_STEPS))
        peaks[arm] = round(train(cores, recipe, model, epochs, shards, copy, *words) / 1e6, 1)
    return peaks


def main() -> None:
    """Make the shards, repeat for each model, write after each repetition."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="needed once, to make the shards")
    parser.add_argument("--source", default="imagefolder", choices=("imagefolder", "cifar10"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    work = options.work.resolve()
    shards = make_shards(work / "cifar10", options.source, options.images)
    results = json.loads(PATH.read_text()) if PATH.exists() else {"benchmark": "training_time", "models": {}}
    for model in options.models:
        entry = results["models"].setdefault(model, {"epochs": options.epochs, "repetitions": []})
        for number in range(1 + len(entry["repetitions"]), 1 + options.repeats):
            done = repetition(number, model, options.epochs, shards, work / "training_time")
            entry["repetitions"].append(done)
            entry["time_ratio"] = round(statistics.mean(r["time_ratio"] for r in entry["repetitions"]), 4)
            if "memory_mb" not in entry:
                entry["memory_mb"] = memory(model, options.epochs, shards, work / "training_time")
            PATH.write_text(json.dumps({**results, "cores": os.cpu_count()}, indent=1) + "\n")
            print(json.dumps(done))


if __name__ == "__main__":
    main()
