"""Section: the base of everything that a recipe is made of (a leaf)."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


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


def fields_of_class(section: type[Section], prefix: str) -> dict[str, FieldInfo]:
    """Return every field by its dotted key, nested sections and their fields included."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        found[f"{prefix}{name}"] = field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= fields_of_class(field.annotation, f"{prefix}{name}.")
    return found
