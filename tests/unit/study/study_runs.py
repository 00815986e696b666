"""Synthetic run folders for the tests of comparisons."""

import math
import random
from pathlib import Path

from dist_prune.files import to_json
from dist_prune.monitor.records import EVAL_KEYS, SUMMARY_KEYS, RunFolder

DENSE_MACS, DENSE_PARAMETERS = 40_000_000, 270_000


def make_run(
    path: Path,
    *,
    seed=1,
    name="half",
    accuracy=0.82,
    ratio=0.5,
    epochs=4,
    evaluated=None,
    sites=3,
    kind="layer",
    finished=True,
    gated=True,
    macs_dense=DENSE_MACS,
    ds_config=None,
    naive=None,
    joules=None,
    **settings,
):
    """Write a run of `epochs`, of which `evaluated` are over; its gates part towards `ratio` open."""
    run = RunFolder.create(path, resume=False)
    config = {"name": name, "data": f"/data/{path.name}", "model": "resnet20", "model_args": {}, "seed": seed}
    config |= {"method": "consensus" if gated else "dense", "gates": {"kind": kind, "head": "ste"}}
    config |= {"epochs": epochs, "log_every": seed, "target_macs": ratio if gated else None}
    run.write_json(run.config, {"config": {**config, **settings}, "ds_config": ds_config or {}})
    generator = random.Random(f"{seed} {sites} {kind}")
    ends = [_end(generator, ratio, kind) for _ in range(sites)]
    evaluated = epochs if evaluated is None else evaluated
    for epoch in range(1, evaluated + 1):
        record = _evaluation(epoch, epochs, ends, accuracy, ratio, gated, macs_dense)
        run.append("eval", {**record, "seconds": 100.0 * epoch, "energy_joules": joules})
    if gated and evaluated:
        run.write_json(run.mask, {"sites": [_site(i, end, kind) for i, end in enumerate(ends)]})
    run.write_status("done" if finished else "stopped", last_step=10 * evaluated)
    if finished:
        record = _summary(accuracy, ratio, gated, macs_dense)
        run.append("summary", {**record, "energy_joules": joules and joules * evaluated})
    if naive is not None:
        (path / "naive.json").write_text(to_json(naive))
    return path


def naive_entries(accuracies=(0.6, 0.3), seeds=(1, 2)):
    """naive.json: both baselines at 20 % and 50 %; dropout saves no MACs."""
    return [
        {"baseline": baseline, "share": share, "seed": seed, "accuracy": accuracy - 0.02 * seed}
        | {"macs_ratio": 1 - share if baseline == "layers" else None}
        for baseline in ("dropout", "layers")
        for share, accuracy in zip((0.2, 0.5), accuracies, strict=True)
        for seed in seeds
    ]


def _end(generator, ratio, kind):
    if kind == "channel":
        return min(1.0, max(0.0, generator.gauss(ratio, 0.2)))
    return 1.0 if generator.random() < ratio else 0.0


def _evaluation(epoch, epochs, ends, accuracy, ratio, gated, macs_dense):
    share = 1 / (1 + math.exp(-10 * (epoch / epochs - 0.5)))
    means = {f"layer{i}": 0.75 + share * (end - 0.75) for i, end in enumerate(ends)}
    record = {**dict.fromkeys(EVAL_KEYS), "epoch": epoch, "step": 10 * epoch, "accuracy": accuracy * share}
    record |= {"macs": macs_dense, "macs_dense": macs_dense, "macs_ratio": 1.0, "gate_means": {}}
    if not gated:
        return record
    record |= {"open_ratio": sum(ends) / len(ends), "r_polar": 0.2 * (1.01 - share), "gate_means": means}
    return {**record, "macs_ratio": 1 - share * (1 - ratio), "accuracy_consensus": accuracy * share}


def _site(index, end, kind):
    units = 16 if kind == "channel" else 1
    site = {"name": f"layer{index}", "kind": kind, "units": units, "mean_activation": end}
    site |= {"kept": list(range(round(end * units))), "agreement": 1.0, "r_polar": 0.0}
    return {**site, "undecided": int(index == 1)}


def _summary(accuracy, ratio, gated, macs_dense):
    record = {**dict.fromkeys(SUMMARY_KEYS), "accuracy": accuracy, "accuracy_sliced": accuracy}
    record |= {"macs": macs_dense * ratio, "macs_dense": macs_dense, "macs_ratio": ratio}
    record |= {"parameters": DENSE_PARAMETERS * ratio, "parameters_dense": DENSE_PARAMETERS}
    return {**record, "agreement": 0.999 if gated else None, "seconds_total": 500.0, "world_size": 1}
