"""Several runs side by side: reading them, groups of repeats over seeds, means and deviations."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_prune.monitor.records import Record, RunFolder
from dist_prune.monitor.study_labels import Settings, labels, settings

_FROM_EVALS = ("open_ratio", "r_polar")  # the summary does not repeat them


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation of `count` values; one value has no deviation."""

    mean: float
    deviation: float | None = None
    count: int = 1

    @staticmethod
    def of(values: Iterable[float | None]) -> "Stat | None":
        """Over the values that were measured; None if none was."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return Stat(statistics.fmean(known), deviation, len(known))


@dataclass(frozen=True)
class StudyRun:
    """One run as its folder tells it.

    evals: eval records; summary: None while unfinished; sites: those of mask.json; naive: the content of
    naive.json, each {"baseline", "share", "seed", "accuracy", "macs_ratio"}.
    """

    name: str
    seed: int
    epochs: int
    settings: Settings
    evals: Sequence[Record]
    summary: Record | None
    sites: Sequence[Record]
    naive: Sequence[Record]

    def value(self, key: str) -> float | None:
        """What a finished run came to, by the key of its summary or, for gates, of its last evaluation."""
        if self.summary is None:
            return None
        if key in _FROM_EVALS:
            return next((e[key] for e in reversed(self.evals) if e.get(key) is not None), None)
        return self.summary.get(key)


@dataclass(frozen=True)
class Group:
    """Runs with the same settings and, as a rule, different seeds."""

    label: str
    settings: Settings
    runs: Sequence[StudyRun]

    def stat(self, key: str) -> Stat | None:
        """Over the finished runs; keys as in `StudyRun.value`."""
        return Stat.of(run.value(key) for run in self.runs)

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense network, without gates and whole."""
        return self.settings.get("method") == "dense"


def read_run(folder: Path, name: str) -> StudyRun:
    """Read a run that is finished, or has been evaluated once at least. `name` is how it is shown.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: nothing was evaluated yet, or a file is damaged.
    """
    run = RunFolder(folder)
    if not run.holds_run() or not run.config.exists():
        raise FileNotFoundError(f"{folder} holds no run")
    records = run.read_metrics()
    evals = [record for record in records if record["kind"] == "eval"]
    summaries = [record for record in records if record["kind"] == "summary"]
    if not evals and not summaries:
        raise ValueError(f"{folder} is unfinished and has no evaluation yet; leave it out")
    content, mask = _json(run.config), _json(run.mask) if run.mask.exists() else {}
    naive = folder / "naive.json"
    try:
        return StudyRun(
            name=name,
            seed=content["config"]["seed"],
            epochs=content["config"]["epochs"],
            settings=settings(content, [*evals, *summaries][-1].get("macs_dense")),
            evals=evals,
            summary=summaries[-1] if summaries else None,
            sites=mask.get("sites", []),
            naive=_checked_naive(naive) if naive.exists() else [],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run.config} is not the configuration of a run") from error


def group_runs(runs: Sequence[StudyRun]) -> list[Group]:
    """Repeats together, in the order of their first run; within a group by seed."""
    members: dict[tuple[tuple[str, str], ...], list[StudyRun]] = {}
    for run in runs:
        members.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    found = list(members.values())
    names = labels([repeats[0].settings for repeats in found])
    return [
        Group(label, repeats[0].settings, sorted(repeats, key=lambda run: run.seed))
        for label, repeats in zip(names, found, strict=True)
    ]


def dense_group(group: Group, groups: Sequence[Group]) -> Group | None:
    """The finished dense group to compare with: of the same network and, if there are several, as many epochs.

    None where there is none, or where more than one would do.
    """

    def network(of: Group) -> dict[str, str]:
        keys = ("model", "macs_dense")
        return {k: v for k, v in of.settings.items() if k in keys or k.startswith("model_args")}

    candidates = [
        g for g in groups if g.is_dense and network(g) == network(group) and g.stat("accuracy_sliced")
    ]
    if group in candidates:
        return group
    if len(candidates) > 1:
        candidates = [g for g in candidates if g.settings["epochs"] == group.settings["epochs"]]
    return candidates[0] if len(candidates) == 1 else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON") from error


def _checked_naive(path: Path) -> list[Record]:
    entries = _json(path)
    keys = {"baseline", "share", "accuracy"}
    if not isinstance(entries, list) or any(not isinstance(e, dict) or not keys <= e.keys() for e in entries):
        raise ValueError(f"{path} is not a list of baselines with {', '.join(sorted(keys))}")
    return entries
