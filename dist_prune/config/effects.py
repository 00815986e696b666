"""Fields that a recipe sets and that do nothing: the user must hear of them."""

import json
from collections.abc import Iterable
from typing import Any

from dist_prune.config.run_config import RunConfig
from dist_prune.config.section import fields

# Fields that only some methods read; a method lists those that it reads in ``Method.reads``.
METHOD_FIELDS = frozenset({
    "gates", "target_macs", "budget", "freeze", "polarization", "activation", "mask_samples", "round_to",
})  # fmt: skip


# What a field, or every field of a section, needs to have an effect: another field that has this value, or, without a
# value, one that is neither 0 nor null. A new field that only works together with another belongs here.
_NEEDS = {
    "gates.position": "gates.kind=channel",
    "gates.flatten": "gates.kind=channel",
    "gates.hidden": "gates.dense_layers=2",
    "gates.temperature": "gates.head=gumbel",
    "round_to": "gates.kind=channel",
    "budget": "target_macs",
    "freeze.open_from": "freeze.after",
    "freeze.thaw_after": "freeze.after",
    "freeze.collapse": "freeze.after",
    "lr_schedule.milestones": "lr_schedule.kind=steps",
    "lr_schedule.gamma": "lr_schedule.kind=steps",
    "lr_schedule.warmup_share": "lr_schedule.kind=one_cycle",
    "momentum": "optimizer=sgd",
    "nesterov": "optimizer=sgd",
    "betas": "optimizer=adamw",
    "decay_gates_and_norms": "weight_decay",
    "max_skipped": "bad_data=skip",
    "cache": "data=remote",
}


def without_effect(config: RunConfig, reads: frozenset[str], keys_set: Iterable[str] = ()) -> list[str]:
    """Return one line for each field that was set and that nothing reads.

    reads: which of ``METHOD_FIELDS`` the method reads; keys_set: what the user has set, even if to its default.
    """
    method = f"method is {config.method}"
    if "gates" in reads and config.gates.kind == "none":
        reads, method = reads - METHOD_FIELDS, "gates.kind is none"
    values = {key: value for key, value, _ in fields(config)}
    defaults = {key: value for key, value, _ in fields(RunConfig(name="", data="", model=""))}
    keys_set, lines = set(keys_set), []
    for key, value in values.items():
        section = key.partition(".")[0]
        # A field that is set back to null is meant to do nothing.
        if value is None or (key not in keys_set and section not in keys_set and value == defaults[key]):
            continue
        if section in METHOD_FIELDS and section not in reads and value != "none":
            lines.append(f"{key} has no effect: {method}")
        elif why := _unmet(_NEEDS.get(key) or _NEEDS.get(section), values):
            lines.append(f"{key} has no effect: {why}")
    return lines


def _unmet(need: str | None, values: dict[str, Any]) -> str | None:
    """Return why a need is not met; None where it is, or where there is none."""
    if need is None:
        return None
    key, _, wanted = need.partition("=")
    found = values[key]
    if need == "data=remote":
        found = "remote" if "://" in found or found.startswith("pipe:") else "local"
    if need == "freeze.after" and found is None:  # the default: units are decided under a budget
        found = values["target_macs"]
    if wanted:
        return None if str(found) == wanted else f"{key} is not {wanted}"
    return None if found else f"{key} is {json.dumps(found)}"
