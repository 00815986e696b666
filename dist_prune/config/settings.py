"""What a user sets: ``key=value`` applied to a recipe, validated, and told if it does nothing."""

import json
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dist_prune.config.run_config import DataConfig, RunConfig, Section
from dist_prune.config.schedules import KINDS
from dist_prune.errors import UserError, first_problem, nearest

# Arguments of these fields are validated by the code that receives them.
_OPEN_ENDED = ("model_args", "method_args")
_S = TypeVar("_S", bound=Section)

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
    "augment.crop_area": "augment.random_resized_crop",
    "momentum": "optimizer=sgd",
    "nesterov": "optimizer=sgd",
    "betas": "optimizer=adamw",
    "decay_gates_and_norms": "weight_decay",
    "max_skipped": "bad_data=skip",
    "cache.folder": "data.location=remote",
    "cache.gigabytes": "data.location=remote",
    "cache.timeout": "data.location=remote",
    "cache.retries": "data.location=remote",
    "cache.decoded_gigabytes": "data.order=exact",
    "data.samples": "data.order=stream",
    "data.shuffle": "data.order=stream",
}


def fields(section: Section) -> Iterator[tuple[str, Any, str]]:
    """Yield dotted key, value and description of every field, those of nested sections included."""
    for key, field in _fields_of_class(type(section)).items():
        value = attrgetter(key)(section)
        if not isinstance(value, Section):
            yield key, value, field.description or ""


def _fields_of_class(section: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Return every field by its dotted key, nested sections and their fields included."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        found[f"{prefix}{name}"] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= _fields_of_class(field.annotation, f"{prefix}{name}.")
    return found


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Return ``config`` with ``key=value`` settings applied; keys are dotted, values JSON or else plain text.

    Raises UserError for a malformed setting, an unknown key or a value out of range.
    """
    data = config.model_dump()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value")
        *above, last = _whole_key(key, text).split(".")
        inner = data
        for part in above:
            # A section that does not exist is found by the validation.
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UserError(f"unknown recipe key '{key}': '{part}' is {json.dumps(inner)} and has no fields")
        inner[last] = _parse(text)
    # Validated once, after the last setting: their order does not matter.
    return validated(RunConfig, data)


def validated(section: type[_S], data: Any, prefix: str = "") -> _S:
    """Return plain data as a section; fields that are missing have their defaults. prefix: of its keys in the recipe.

    Raises UserError for unknown keys (names the nearest one) or wrong values (with the field's description).
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        where, problem = first_problem(error)
        # Pydantic adds the kind of a schedule to the path; no user has written it.
        first, *inner = where.split(".")
        path = [first, *(part for part in inner if part not in KINDS)]
        key, known = prefix + ".".join(path), _fields_of_class(section, prefix)
        if error.errors(include_url=False)[0]["type"] == "extra_forbidden":
            above = key.rpartition(".")[0]
            beside = [name for name in known if name.rpartition(".")[0] == above]
            hint = nearest(key, beside) if beside else f"'{above}' has no such field"
            raise UserError(f"unknown recipe key '{key}'; {hint}") from error
        if not where:  # a contradiction between fields, which names them
            raise UserError(problem.partition(" (got ")[0]) from error
        # The innermost field that has a description: parts of a list, for example, have none.
        levels = (prefix + ".".join(path[:depth]) for depth in range(len(path), 0, -1))
        about = next((known[level].description for level in levels if level in known), None)
        raise UserError(f"recipe key '{key}': {problem}" + (f"; it is: {about}" if about else "")) from error


def settings_keys(settings: Sequence[str]) -> list[str]:
    """Return the dotted keys that settings assign; an object assigns one key per entry."""
    keys = []
    for setting in settings:
        key, _, text = setting.partition("=")
        value = _parse(text)
        nested = isinstance(value, dict) and key not in _OPEN_ENDED and "kind" not in value
        keys += [f"{key}.{name}" for name in value] if nested else [_whole_key(key, text)]
    return keys


def _whole_key(key: str, text: str) -> str:
    """Return the key that a setting assigns: data=X says where the data are, and leaves the rest of the section."""
    return "data.location" if key == "data" and not isinstance(_parse(text), dict) else key


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def without_effect(config: RunConfig, reads: frozenset[str], keys_set: Iterable[str] = ()) -> list[str]:
    """Return one line for each field that was set and that nothing reads.

    reads: which of ``METHOD_FIELDS`` the method reads; keys_set: what the user has set, even if to its default.
    """
    method = f"method is {config.method}"
    if "gates" in reads and config.gates.kind == "none":
        reads, method = reads - METHOD_FIELDS, "gates.kind is none"
    values = {key: value for key, value, _ in fields(config)}
    defaults = {key: value for key, value, _ in fields(RunConfig(name="", data=DataConfig(location=""), model=""))}
    keys_set, lines = set(keys_set), []
    for key, value in values.items():
        section = key.partition(".")[0]
        # A field that is set back to null is meant to do nothing.
        if value is None or (value == defaults[key] and keys_set.isdisjoint((key, section))):
            continue
        if section in METHOD_FIELDS and section not in reads and value != "none":
            lines.append(f"{key} has no effect: {method}")
        elif why := _unmet(_NEEDS.get(key) or _NEEDS.get(section), values, config):
            lines.append(f"{key} has no effect: {why}")
    return lines


def _unmet(need: str | None, values: dict[str, Any], config: RunConfig) -> str | None:
    """Return why a need is not met; None where it is, or where there is none."""
    if need is None:
        return None
    key, _, wanted = need.partition("=")
    if need == "data.location=remote":
        return None if config.data.is_remote else "data is not remote"
    found = values[key]
    if need == "freeze.after" and found is None:  # the default: units are decided under a budget
        found = values["target_macs"]
    if wanted:
        return None if str(found) == wanted else f"{key} is not {wanted}"
    return None if found else f"{key} is {json.dumps(found)}"
