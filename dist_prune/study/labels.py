"""Settings that distinguish the runs of a study, as dotted keys, and labels made of those that differ."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from dist_prune.config import RESUMABLE_FIELDS

Settings = Mapping[str, str]  # dotted key -> value as text

# They change where a run computes or what it records, not what it learns. Seeds are what a group repeats.
_IRRELEVANT = {"seed", "data", "channels_last", *RESUMABLE_FIELDS}
_ALWAYS_SHOWN = ["model", "epochs"]  # runs that differ in these are not comparable, whatever their recipes
_AMOUNTS = ("target_macs", "target_weight", "activation")  # how much is pruned, not how


def settings(content: Mapping[str, Any], macs_dense: int | None) -> Settings:
    """Return what decides the result of a run with this config.json, apart from its seed.

    MACs of the dense network distinguish data sets: their paths differ from machine to machine.
    """
    config, ds_config = content["config"], content.get("ds_config") or {}
    return {
        "name": config["name"],
        **dict(_flat({key: value for key, value in config.items() if key not in _IRRELEVANT})),
        # Of the DeepSpeed JSON only these change the numbers; ZeRO stage, micro-batch and offload do not.
        "precision": _precision(ds_config),
        "gradient_clipping": _text(ds_config.get("gradient_clipping") or None),
        "macs_dense": _text(macs_dense),
    }


def family(of: Settings) -> Settings:
    """Return the settings without the amount to prune: groups of one family are drawn as one series."""
    return {key: value for key, value in of.items() if key not in _AMOUNTS}


def labels(runs: Sequence[Settings]) -> list[str]:
    """Return a label for each: recipe and, as key=value, what differs. Equal settings alone have equal labels."""
    if not len(runs):
        return []
    table = pd.DataFrame(list(runs))
    for omitted in (["macs_dense"], []):  # MACs only where nothing else distinguishes two groups
        shown = table.drop(columns=["name", *omitted], errors="ignore")
        # Two recipes may differ in anything; only within a recipe is every difference worth a word.
        differs = shown.groupby(table["name"]).nunique(dropna=False) > 1
        for key in shown.columns.intersection(_ALWAYS_SHOWN):
            differs[key] = shown[key].nunique(dropna=False) > 1
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


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and _schedule(value) is None:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, _text(value)


def _schedule(value: Any) -> str | None:
    """Format a schedule as 3, as 0..2@5..15 or as 1@5,2@10 (value@epoch); None for anything else."""
    match value:
        case {"kind": "constant", "value": number}:
            return _text(number)
        case {"kind": "ramp", "start": start, "end": end, "from_epoch": first, "to_epoch": last}:
            return f"{start:g}..{end:g}@{first:g}..{last:g}"
        case {"kind": "steps", "values": steps}:
            return ",".join(f"{number:g}@{epoch:g}" for epoch, number in steps)
    return None


def _precision(ds_config: Mapping[str, Any]) -> str:
    sections = {key: ds_config.get(key) or {} for key in ("torch_autocast", "bf16", "fp16")}
    if sections["torch_autocast"].get("enabled"):
        return str(sections["torch_autocast"].get("dtype", "bfloat16")).replace("bfloat", "bf")
    return next((key for key in ("bf16", "fp16") if sections[key].get("enabled")), "fp32")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else _schedule(value) or json.dumps(value, separators=(",", ":"))
