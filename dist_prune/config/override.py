"""Recipes from plain data, and settings ``key=value`` applied to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from dist_prune.config.run_config import RunConfig
from dist_prune.config.schedules import KINDS
from dist_prune.config.section import description, keys_at
from dist_prune.errors import UserError, first_problem, nearest

# Arguments of these fields are validated by the code that receives them.
_OPEN_ENDED = ("model_args", "method_args")


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Return ``config`` with ``key=value`` settings applied; keys are dotted, values JSON or else plain text.

    Raises:
        UserError: a malformed setting, an unknown key (names the nearest one) or a value out of range.
    """
    data = config.model_dump()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value")
        _assign(data, key.split("."), _parse(text), key)
    # Validated once, after the last setting: their order does not matter.
    return read_config(data)


def read_config(data: Any) -> RunConfig:
    """Return the recipe of plain data; fields that are missing have their defaults.

    Raises:
        UserError: unknown keys or wrong values, in one line with the field's description.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        where, problem = first_problem(error)
        if not where:  # a contradiction between fields, which names them
            raise UserError(problem.partition(" (got ")[0]) from error
        if error.errors(include_url=False)[0]["type"] == "extra_forbidden":
            *above, _ = where.split(".")
            known = [".".join([*above, name]) for name in keys_at(RunConfig, above)]
            raise UserError(f"unknown recipe key '{where}'; {nearest(where, known)}") from error
        # Pydantic adds the kind of a schedule to the path; no user has written it.
        path = [part for depth, part in enumerate(where.split(".")) if not (depth and part in KINDS)]
        about = description(RunConfig, path)
        raise UserError(f"recipe key '{'.'.join(path)}': {problem}" + (f"; it is: {about}" if about else "")) from error


def settings_keys(settings: Sequence[str]) -> list[str]:
    """Return the dotted keys that settings assign; an object assigns one key per entry."""
    keys = []
    for setting in settings:
        key, _, text = setting.partition("=")
        value = _parse(text)
        nested = isinstance(value, dict) and key not in _OPEN_ENDED and "kind" not in value
        keys += [f"{key}.{name}" for name in value] if nested else [key]
    return keys


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _assign(data: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for depth, part in enumerate(path):
        open_ended = path[0] in _OPEN_ENDED and depth > 0
        if not isinstance(data, dict) or (part not in data and not open_ended):
            known = (
                [".".join([*path[:depth], name]) for name in data]
                if isinstance(data, dict)
                else list(RunConfig.model_fields)
            )
            raise UserError(f"unknown recipe key '{key}'; {nearest('.'.join(path[: depth + 1]), known)}")
        if depth + 1 < len(path):
            data = data.setdefault(part, {}) if open_ended else data[part]
    data[path[-1]] = value
