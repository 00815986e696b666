"""Runs of a study as a data frame, one row a run, grouped over seeds, and their naive baselines. NaN: not measured."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from dist_prune.config import is_resumable
from dist_prune.monitor.records import RunFolder, read_as

_GATES = ("open_ratio", "r_polar")  # from the last evaluation that has them; the summary does not repeat them
_SUMMARY = ("accuracy_sliced", "macs", "macs_ratio", "parameters", "agreement", "seconds_total", "energy_joules")
MEASURED = (*_SUMMARY, *_GATES)
# They change where a run computes or what it records, not what it learns. Seeds are what a group repeats.
# Earlier runs recorded of their data the location alone.
_IRRELEVANT = {"seed", "data", "channels_last"}
_ALWAYS_SHOWN = ["model", "epochs"]  # runs that differ in these are not comparable, whatever their recipes

Settings = Mapping[str, str]  # dotted key -> value as text


class _NaiveDraw(BaseModel):
    """An entry of naive.json: a network after a random share was pruned; macs_ratio is over the run's own MACs."""

    baseline: str
    share: float
    accuracy: float | None
    macs_ratio: float | None = None


def read_runs(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Read runs, each by the name that pages show, and sort them: groups by their first run, then seeds.

    Columns: run, seed, epochs, settings, network, finished, evals, sites, naive; group, a label that repeats over seeds
    share; dense, the label of the dense group to compare with, and dense_accuracy, its mean; the `MEASURED` results of
    finished runs; pruned, the share of units that is gone.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: there is no evaluation yet, or a file is damaged.
    """
    runs = pd.DataFrame([_read(folder, name) for name, folder in folders.items()])
    runs = runs.astype(dict.fromkeys(MEASURED, float)).assign(group=labels(list(runs["settings"])))
    runs = runs.assign(order=pd.factorize(runs["group"])[0]).sort_values(["order", "seed"], ignore_index=True)
    # A gated method without gates trains the plain network, too.
    method = runs["settings"].map(lambda of: (of.get("method"), of.get("gates.kind")))
    is_dense = method.map(lambda of: of[0] == "dense" or of == ("consensus", "none"))
    dense = runs[runs["finished"] & is_dense].drop_duplicates("group")
    runs["dense"] = runs["group"].where(runs["group"].isin(dense["group"]))
    # Only the dense groups that are alone in their network, or in their network and epochs: no arbitrary choice.
    for keys in (["network"], ["network", "epochs"]):
        alone = dense.drop_duplicates(keys, keep=False)[[*keys, "group"]]
        runs["dense"] = runs["dense"].fillna(runs[keys].merge(alone, how="left")["group"])
    runs["dense_accuracy"] = runs["dense"].map(runs.groupby("group")["accuracy_sliced"].mean()).astype(float)
    # A dense network has no gates, and nothing of it is gone.
    return runs.assign(pruned=(1 - runs["open_ratio"]).mask(is_dense, 0.0))


def naive_draws(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a draw of a naive baseline: baseline, series (its label), share, and results as in `read_runs`.

    They are sorted by series and rising share.
    """
    rows = [{"run": run.run, **draw.model_dump()} for run in runs.itertuples() for draw in run.naive]
    draws = pd.DataFrame(rows, columns=["run", *_NaiveDraw.model_fields])
    draws = draws.astype({"accuracy": float, "macs_ratio": float}).dropna(subset="accuracy")
    draws = draws.rename(columns={"accuracy": "accuracy_sliced"})
    draws = draws.merge(runs[["run", "group", "dense_accuracy", "macs_ratio"]], on="run", suffixes=("", "_of_run"))
    draws["macs_ratio"] *= draws["macs_ratio_of_run"]
    draws["series"] = "naive " + draws["baseline"].replace("layers", "layer pruning")
    if draws["group"].nunique() > 1:
        draws["series"] += " of " + draws["group"]
    draws = draws.assign(pruned=draws["share"], order=pd.factorize(draws["series"])[0])
    return draws.sort_values(["order", "share"], kind="stable")


def _read(folder: Path, name: str) -> dict[str, Any]:
    run = RunFolder(folder)
    if not run.holds_run() or not run.config.exists():
        raise FileNotFoundError(f"{folder} holds no run")
    evals, summaries = run.read_metrics("eval"), run.read_metrics("summary")
    if not evals and not summaries:
        raise ValueError(f"{folder} is unfinished and has no evaluation yet; remove it")
    row = {"run": name, "finished": bool(summaries), "evals": evals, "sites": run.read_sites()}
    gates = {key: e[key] for e in evals for key in _GATES if e.get(key) is not None}
    row |= {key: {**gates, **summaries[-1]}.get(key) if summaries else None for key in MEASURED}
    row["naive"] = read_as(list[_NaiveDraw], folder / "naive.json", "a list of baselines") or []
    try:
        content = json.loads(run.config.read_text("utf-8"))
        row |= {key: content["config"][key] for key in ("seed", "epochs")}
        settings = _settings(content, [*evals, *summaries][-1].get("macs_dense"))
        network = [(key, settings[key]) for key in settings if re.match(r"model$|model_args|macs_dense$", key)]
        return row | {"settings": settings, "network": str(network)}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{run.config} is not JSON") from error
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{run.config} is not the configuration of a run") from error


def _settings(content: Mapping[str, Any], macs_dense: int | None) -> Settings:
    """Return what decides the result of a run with this config.json, apart from its seed.

    MACs of the dense network distinguish data sets: their paths differ from machine to machine.
    """
    config, ds_config = content["config"], content.get("ds_config") or {}
    # Of the DeepSpeed JSON only precision and clipping change the numbers; ZeRO stage, micro-batch and offload do not.
    autocast = ds_config.get("torch_autocast") or {}
    precision = next((key for key in ("bf16", "fp16") if (ds_config.get(key) or {}).get("enabled")), "fp32")
    if autocast.get("enabled"):
        precision = str(autocast.get("dtype", "bfloat16")).replace("bfloat", "bf")
    settings = {"name": config["name"], **config}
    settings |= {"precision": precision, "gradient_clipping": ds_config.get("gradient_clipping") or None}
    flat = _flat({**settings, "macs_dense": macs_dense})
    return {key: value for key, value in flat if key not in _IRRELEVANT and not is_resumable(key)}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values as text; a schedule is 3, 0..2@5..15 or 1@5,2@10 (value@epoch)."""
    match value:
        case {"kind": "constant", "value": number}:
            yield from _flat(number, key)
        case {"kind": "ramp", "start": start, "end": end, "from_epoch": first, "to_epoch": last}:
            yield key, f"{start:g}..{end:g}@{first:g}..{last:g}"
        case {"kind": "steps", "values": steps}:
            yield key, ",".join(f"{number:g}@{epoch:g}" for epoch, number in steps)
        case dict():
            for name, item in value.items():
                yield from _flat(item, f"{key}.{name}" if key else name)
        case float():
            yield key, f"{value:g}"
        case _:
            yield key, value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def labels(runs: Sequence[Settings]) -> list[str]:
    """Return a label for each: recipe and, as key=value, what differs. Equal settings alone have equal labels."""
    if not runs:
        return []
    table = pd.DataFrame(list(runs))
    for omitted in (["macs_dense"], []):  # MACs only where nothing else distinguishes two groups
        shown = table.drop(columns=["name", *omitted], errors="ignore")
        # Two recipes may differ in anything; only within a recipe is every difference worth a word.
        differs = shown.groupby(table["name"]).nunique(dropna=False) > 1
        differs |= (shown.nunique(dropna=False) > 1) & shown.columns.isin(_ALWAYS_SHOWN)
        found = [
            " ".join([of["name"], *(f"{k}={of[k]}" for k in shown if k in of and differs.at[of["name"], k])])
            for of in runs
        ]
        if len(set(found)) == len(table.drop_duplicates()):
            break
    return found


def short_labels(long: Iterable[str]) -> list[str]:
    """Return labels for pictures: without the recipe if all have the same and something else remains."""
    parts = [label.partition(" ") for label in long]
    common = len({name for name, _, _ in parts}) == 1 and all(rest for _, _, rest in parts)
    return [rest if common else name + space + rest for name, space, rest in parts]
