"""Images per second of one and of two ranks, one core for each, dense and gated: prints and writes the result.

    python benchmarks/scaling.py --images FOLDER [--model resnet56] [--steps 40] [--repeats 3]

The real program under torchrun with ZeRO 2 on CIFAR-10, 128 images a rank (weak scaling), the first steps of a run:
gates are evaluated, and no unit is decided yet. All four are time-interleaved, so that a drift in speed affects
all of them. Results: benchmarks/results/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from study import ROOT, make_shards

PATH = ROOT / "benchmarks" / "results" / "scaling.json"
ARMS = {"dense": "cifar10_resnet20_dense", "gated": "cifar10_resnet20_half"}
BATCH, WARM_UP = 128, 10  # images of a rank in a step; steps that do not count


def images_per_second(recipe: str, ranks: int, options: argparse.Namespace, shards: Path, out: Path) -> float:
    """Train for some steps; the speed of all ranks together after the first ``WARM_UP`` steps."""
    shutil.rmtree(out, ignore_errors=True)
    cores = sorted(os.sched_getaffinity(0))[:ranks]
    if len(cores) < ranks:
        raise SystemExit(f"{ranks} ranks need {ranks} cores; this process may use {len(cores)}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "torch.distributed.run"]
    command += ["--standalone", "--nproc_per_node", str(ranks), "launch/train.py", "--recipe", recipe]
    command += ["--ds_config", "ds_configs/zero2_bf16.json", "--data", str(shards), "--out", str(out)]
    command += ["--max_steps", str(options.steps), "--set", f"model={options.model}", "log_every=1"]
    command += [f"global_batch_size={BATCH * ranks}", "workers=0"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    status = json.loads((out / "status.json").read_text()) if (out / "status.json").exists() else {}
    if status.get("state") != "stopped":  # the exit code says nothing: torchrun turns 3 into 1
        raise SystemExit(f"{recipe} on {ranks} ranks failed: {done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    speeds = {line["step"]: line["speed/images_per_second"] for line in lines if line["kind"] == "train"}
    seconds = {step: step * BATCH * ranks / speed for step, speed in speeds.items()}  # since the first began
    return BATCH * ranks * (options.steps - WARM_UP) / (seconds[options.steps] - seconds[WARM_UP])


def main() -> None:
    """Let all four take turns and write medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", help="needed once, to make the shards")
    parser.add_argument("--source", default="imagefolder", choices=("imagefolder", "cifar10"))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    work = options.work.resolve()
    shards = make_shards(work / "cifar10", options.source, options.images)
    speeds: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for ranks in (1, 2):
            for arm, recipe in ARMS.items():
                speed = images_per_second(recipe, ranks, options, shards, work / "scaling")
                speeds.setdefault(f"{arm}, {ranks} ranks", []).append(round(speed, 1))
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "benchmark": "scaling",
        "model": options.model,
        "steps": options.steps,
        "images_of_a_rank": BATCH,
        "images_per_second": speeds,
        "two_ranks_over_one": {arm: round(middle[f"{arm}, 2 ranks"] / middle[f"{arm}, 1 ranks"], 3) for arm in ARMS},
        "cores": os.cpu_count(),
    }
    PATH.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
