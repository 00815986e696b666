"""Recipes from plain data, and settings ``key=value`` applied to them."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from dist_prune.config.run_config import RunConfig
from dist_prune.config.schedules import KINDS
from dist_prune.config.section import Section, fields_of_class
from dist_prune.errors import UserError, first_problem, nearest

# Arguments of these fields are validated by the code that receives them.
_OPEN_ENDED = ("model_args", "method_args")
_S = TypeVar("_S", bound=Section)


def override(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Return ``config`` with ``key=value`` settings applied; keys are dotted, values JSON or else plain text.

    Raises UserError for a malformed setting, an unknown key or a value out of range.
    """
    data = config.model_dump()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value")
        *above, last = key.split(".")
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
        key, known = prefix + ".".join(path), fields_of_class(section, prefix)
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
        keys += [f"{key}.{name}" for name in value] if nested else [key]
    return keys


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
