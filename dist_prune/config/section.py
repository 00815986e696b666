"""Section: the base of everything that a recipe is made of (a leaf)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of fields: unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def fields(section: Section, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield dotted key, value and description of every field, those of nested sections included."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field.description or ""


def description(section: type[Section], path: Sequence[str]) -> str:
    """Return the description of the field at ``path``, or of the innermost field above it that has one."""
    found = ""
    for depth, part in enumerate(path):
        inner = _section_at(section, path[:depth])
        if inner is None or part not in inner.model_fields:
            break
        found = inner.model_fields[part].description or found
    return found


def keys_at(section: type[Section], path: Sequence[str]) -> list[str]:
    """Return the names of the fields of the section at ``path``; none where no section is there."""
    inner = _section_at(section, path)
    return list(inner.model_fields) if inner else []


def _section_at(section: type[Section], path: Sequence[str]) -> type[Section] | None:
    for part in path:
        field = section.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            return None
        section = field.annotation
    return section
