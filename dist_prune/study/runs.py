"""Runs of a study as a data frame, one row a run, and their naive baselines. NaN: not measured."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, TypeAdapter, ValidationError

from dist_prune.errors import first_problem
from dist_prune.monitor.records import RunFolder
from dist_prune.study.labels import labels, settings

_GATES = ("open_ratio", "r_polar")  # from the last evaluation that has them; the summary does not repeat them
MEASURED = (
    *("accuracy_sliced", "macs", "macs_ratio", "parameters", "agreement", "seconds_total", "energy_joules"),
    *_GATES,
)


class _NaiveDraw(BaseModel):
    """An entry of naive.json: a network after a random share was pruned; macs_ratio is over the run's own MACs."""

    baseline: str
    share: float
    accuracy: float | None
    macs_ratio: float | None = None


def read_runs(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Read runs, each by the name that pages show, and sort them: groups by their first run, then seeds.

    Columns: run, seed, epochs, settings, finished, evals, sites, naive; group, a label that repeats over seeds share;
    dense, the label of the dense group to compare with, or None; the `MEASURED` results of finished runs; pruned and
    saved, the share of units and of MACs that is gone; drop, the accuracy below the mean of the dense group.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: there is no evaluation yet, or a file is damaged.
    """
    runs = pd.DataFrame([_read(folder, name) for name, folder in folders.items()])
    runs = runs.astype(dict.fromkeys(MEASURED, float)).assign(group=labels(list(runs["settings"])))
    order = pd.Series(pd.factorize(runs["group"])[0], runs.index)
    runs = runs.assign(order=order).sort_values(["order", "seed"], ignore_index=True)
    runs["dense"] = _dense_groups(runs)
    runs["dense_accuracy"] = runs["dense"].map(runs.groupby("group")["accuracy_sliced"].mean()).astype(float)
    # A dense network has no gates, and nothing of it is gone.
    runs["pruned"] = (1 - runs["open_ratio"]).mask(_is_dense(runs), 0.0)
    return _with_losses(runs)


def naive_draws(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a draw of a naive baseline: baseline, share, series (a label), and results as in `read_runs`."""
    rows = [{"run": run.run, **draw.model_dump()} for run in runs.itertuples() for draw in run.naive]
    draws = pd.DataFrame(rows, columns=["run", *_NaiveDraw.model_fields])
    draws = draws.astype({"accuracy": float, "macs_ratio": float}).dropna(subset="accuracy")
    known = runs[["run", "group", "dense_accuracy", "macs_ratio"]].rename(columns={"macs_ratio": "own_ratio"})
    draws = draws.rename(columns={"accuracy": "accuracy_sliced"}).merge(known, how="left", on="run")
    draws["macs_ratio"] *= draws["own_ratio"]
    draws["series"] = "naive " + draws["baseline"].replace("layers", "layer pruning")
    if draws["group"].nunique() > 1:
        draws["series"] += " of " + draws["group"]
    return _with_losses(draws.assign(pruned=draws["share"]))


def _read(folder: Path, name: str) -> dict[str, Any]:
    run = RunFolder(folder)
    if not run.holds_run() or not run.config.exists():
        raise FileNotFoundError(f"{folder} holds no run")
    evals, summaries = run.read_metrics("eval"), run.read_metrics("summary")
    if not evals and not summaries:
        raise ValueError(f"{folder} is unfinished and has no evaluation yet; remove it")
    row = {"run": name, "finished": bool(summaries), "evals": evals, "sites": run.read_sites()}
    row["naive"] = _read_naive(folder / "naive.json")
    gates = {key: e[key] for e in evals for key in _GATES if e.get(key) is not None}
    row |= {key: {**gates, **summaries[-1]}.get(key) if summaries else None for key in MEASURED}
    try:
        content = json.loads(run.config.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{run.config} is not JSON") from error
    try:
        row |= {key: content["config"][key] for key in ("seed", "epochs")}
        return row | {"settings": settings(content, [*evals, *summaries][-1].get("macs_dense"))}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{run.config} is not the configuration of a run") from error


def _read_naive(path: Path) -> list[_NaiveDraw]:
    try:
        return TypeAdapter(list[_NaiveDraw]).validate_json(path.read_bytes()) if path.exists() else []
    except ValidationError as error:
        raise ValueError(f"{path} is not a list of baselines: {': '.join(first_problem(error))}") from error


def _is_dense(runs: pd.DataFrame) -> pd.Series:
    # A gated method without gates trains the plain network, too.
    method = runs["settings"].map(lambda of: (of.get("method"), of.get("gates.kind")))
    return method.map(lambda of: of[0] == "dense" or of == ("consensus", "none"))


def _dense_groups(runs: pd.DataFrame) -> list[str | None]:
    """Return for each run the finished dense group of the same network; among several, the one of as many epochs.

    None where there is none, or where the choice would be arbitrary.
    """
    keys = ("model", "macs_dense")
    networks = runs["settings"].map(
        lambda of: str({k: v for k, v in of.items() if k in keys or k.startswith("model_args")})
    )
    dense = runs[runs["finished"] & _is_dense(runs)].drop_duplicates("group")
    found = []
    for network, run in zip(networks, runs.itertuples(), strict=True):
        same = dense[networks[dense.index] == network]
        if len(same) > 1:
            same = same[same["epochs"] == run.epochs]
        own = (same["group"] == run.group).any()
        found.append(run.group if own else same["group"].iloc[0] if len(same) == 1 else None)
    return found


def _with_losses(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(saved=1 - table["macs_ratio"], drop=table["dense_accuracy"] - table["accuracy_sliced"])
