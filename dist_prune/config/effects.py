"""Fields that a recipe sets and that do nothing: the user must hear of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dist_prune.config.run_config import RunConfig
from dist_prune.config.section import fields

# Fields that only some methods read; a method lists those that it reads in ``Method.reads``.
METHOD_FIELDS = frozenset({
    "gates", "target_macs", "budget", "freeze", "polarization", "activation", "mask_samples", "round_to",
})  # fmt: skip


def _freezes(config: RunConfig) -> bool:
    after = config.freeze.after
    return bool(after) or (after is None and config.target_macs is not None)


# What a field needs to have an effect, and why it has none otherwise.
_NEEDS: dict[str, tuple[Callable[[RunConfig], bool], str]] = {
    "gates.position": (lambda c: c.gates.kind == "channel", "gates.kind is not channel"),
    "gates.flatten": (lambda c: c.gates.kind == "channel", "gates.kind is not channel"),
    "gates.hidden": (lambda c: c.gates.dense_layers == 2, "gates.dense_layers is not 2"),
    "gates.temperature": (lambda c: c.gates.head == "gumbel", "gates.head is not gumbel"),
    "round_to": (lambda c: c.gates.kind == "channel", "gates.kind is not channel"),
    "budget": (lambda c: c.target_macs is not None, "there is no target_macs"),
    "freeze.open_from": (_freezes, "freeze.after is 0"),
    "freeze.thaw_after": (_freezes, "freeze.after is 0"),
    "freeze.collapse": (_freezes, "freeze.after is 0"),
    "lr_schedule.milestones": (lambda c: c.lr_schedule.kind == "steps", "lr_schedule.kind is not steps"),
    "lr_schedule.gamma": (lambda c: c.lr_schedule.kind == "steps", "lr_schedule.kind is not steps"),
    "lr_schedule.warmup_share": (
        lambda c: c.lr_schedule.kind == "one_cycle",
        "lr_schedule.kind is not one_cycle",
    ),
    "momentum": (lambda c: c.optimizer == "sgd", "optimizer is not sgd"),
    "nesterov": (lambda c: c.optimizer == "sgd", "optimizer is not sgd"),
    "betas": (lambda c: c.optimizer == "adamw", "optimizer is not adamw"),
    "decay_gates_and_norms": (lambda c: c.weight_decay > 0, "weight_decay is 0"),
    "max_skipped": (lambda c: c.bad_data == "skip", "bad_data is not skip"),
}


def without_effect(config: RunConfig, reads: frozenset[str], asked: Iterable[str] = ()) -> list[str]:
    """Return one line for each field that was set and that nothing reads.

    Args:
        config: the recipe of the run.
        reads: which of ``METHOD_FIELDS`` the method reads.
        asked: dotted keys that the user has set, even if to their defaults.
    """
    method = f"method is {config.method}"
    if "gates" in reads and config.gates.kind == "none":
        reads, method = reads - METHOD_FIELDS, "gates.kind is none"
    defaults = {key: value for key, value, _ in fields(RunConfig(name="", data="", model=""))}
    asked, lines = set(asked), []
    for key, value, _ in fields(config):
        section = key.partition(".")[0]
        # Whoever sets a field back to null wants it to do nothing.
        if value is None or (key not in asked and section not in asked and value == defaults[key]):
            continue
        useful, why = _NEEDS.get(key) or _NEEDS.get(section) or (lambda _: True, "")
        if section in METHOD_FIELDS and section not in reads and value != "none":
            lines.append(f"{key} has no effect: {method}")
        elif not useful(config):
            lines.append(f"{key} has no effect: {why}")
    return lines
