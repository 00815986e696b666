"""What tells the groups of a study apart: settings as dotted keys, and labels made of those that differ."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dist_prune.config import RESUMABLE_FIELDS

Settings = Mapping[str, str]  # dotted key -> value as text

# These say where a run computes and what it records, not what it trains. Seeds are what a group repeats.
_NO_MATTER = {"seed", "data", "channels_last", *RESUMABLE_FIELDS}
# Two recipes may differ in anything, but a reader must know of these.
_ALWAYS_SHOWN = ("model", "epochs")
_HOW_MUCH = ("target_macs", "target_weight", "activation")  # they say how much is to be pruned, not how
_DENSE_MACS = "macs_dense"
_SCHEDULES = {
    "constant": {"value"},
    "ramp": {"start", "end", "from_epoch", "to_epoch"},
    "steps": {"values"},
}


def settings(content: Mapping[str, Any], macs_dense: int | None) -> dict[str, str]:
    """What decides the outcome of a run but for its seed.

    Args:
        content: the content of config.json.
        macs_dense: MACs of the dense network. They tell data sets apart, whose paths say nothing.
    """
    config, ds_config = content["config"], content.get("ds_config") or {}
    kept = {key: value for key, value in config.items() if key not in _NO_MATTER}
    return {
        "name": config["name"],
        **dict(_flat(kept)),
        # of the DeepSpeed JSON these change the numbers; ZeRO stage, micro-batch and offload do not
        "precision": _precision(ds_config),
        "gradient_clipping": _text(ds_config.get("gradient_clipping") or None),
        _DENSE_MACS: _text(macs_dense),
    }


def family(of: Settings) -> dict[str, str]:
    """Settings without those that say how much is to be pruned: what is left is drawn as one series."""
    return {key: value for key, value in of.items() if key not in _HOW_MUCH}


def labels(groups: Sequence[Settings]) -> list[str]:
    """Recipe name and, as key=value, what differs between groups of that recipe; all labels are distinct.

    Args:
        groups: distinct settings.
    """
    for left_out in ((_DENSE_MACS,), ()):  # MACs only where nothing else tells two groups apart
        found = [" ".join([group["name"], *_differences(group, groups, left_out)]) for group in groups]
        if len(set(found)) == len(found):
            break
    return found


def short_labels(long: Sequence[str]) -> list[str]:
    """Labels for pictures: without the recipe name if it is the same in all and something else is left."""
    parts = [label.partition(" ") for label in long]
    if len({name for name, _, _ in parts}) == 1 and all(rest for _, _, rest in parts):
        return [rest for _, _, rest in parts]
    return list(long)


def _differences(group: Settings, groups: Sequence[Settings], left_out: Iterable[str]) -> list[str]:
    relatives = [other for other in groups if other["name"] == group["name"]]
    return [
        f"{key}={value}"
        for key, value in group.items()
        if key not in left_out
        and key != "name"
        and any(other.get(key) != value for other in (groups if key in _ALWAYS_SHOWN else relatives))
    ]


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and not _is_schedule(value):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else key)
    else:
        yield path, _text(value)


def _is_schedule(value: Mapping[str, Any]) -> bool:
    needed = _SCHEDULES.get(value.get("kind", ""))
    return needed is not None and needed <= value.keys()


def _precision(ds_config: Mapping[str, Any]) -> str:
    sections = {key: ds_config.get(key) or {} for key in ("torch_autocast", "bf16", "fp16")}
    if sections["torch_autocast"].get("enabled"):
        return str(sections["torch_autocast"].get("dtype", "bfloat16")).replace("bfloat", "bf")
    return next((key for key in ("bf16", "fp16") if sections[key].get("enabled")), "fp32")


def _text(value: Any) -> str:
    """A value as users would type it; a schedule as 3, as 0..2@5..15 or as 1@5,2@10 (value@epoch)."""
    if isinstance(value, Mapping):
        if value["kind"] == "constant":
            return _text(value["value"])
        if value["kind"] == "ramp":
            ends = [_text(value[key]) for key in ("start", "end", "from_epoch", "to_epoch")]
            return f"{ends[0]}..{ends[1]}@{ends[2]}..{ends[3]}"
        return ",".join(f"{_text(number)}@{_text(epoch)}" for epoch, number in value["values"])
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
