"""The label of a sample: what its member says, and the class that this means."""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_tools.tar import LABEL

LARGEST_LABEL = 2**16  # bytes of a label member
SHOWN = 20  # characters of a label in a message
# Fields of a json member, and columns of a table, that hold a label, in the order in which they are looked for.
FIELDS = ("label", "cls", "class", "class_id", "label_id", "target", "class_name", "labels")
NOT_ONE_CLASS = {
    "several labels of one image (multi-label)": re.compile(r"\[.*\]|-?\d+([,;|\s]+-?\d+)+", re.DOTALL),
    "a number with decimals (regression)": re.compile(
        r"[-+]?(\d+\.\d*|\.\d+)(e[-+]?\d+)?|[-+]?\d+e[-+]\d+", re.IGNORECASE
    ),
}


class LabelRule(BaseModel):
    """Where the label of a sample stands in shards, and what it means."""

    model_config = ConfigDict(frozen=True)

    # Extension of label members: "cls" and "txt" hold the label, "json" an object.
    member: str = Field(LABEL, min_length=1, max_length=100)
    # The field of that object.
    field: str = ""
    # A label is the number of its class, or the name.
    by: Literal["number", "name"] = "number"

    def text(self, data: bytes) -> str:
        """Return the label in the content of a member.

        Raises:
            ValueError: there is none, or it is neither a number nor a text.
        """
        text = data.decode(errors="replace")
        if self.member == "json":
            text = self._of_object(text)
        return spelled(text.strip())

    def _of_object(self, text: str) -> str:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError("its json cannot be read") from error
        if not isinstance(found, dict) or self.field not in found:
            raise ValueError(f"its json has no field {self.field!r}")
        return text_of(found[self.field], f"{self.field!r} in its json")


def text_of(label: Any, place: str) -> str:
    """Return a label of JSON or of a table as text, also one that is no class; ``place`` is for the message.

    Raises:
        ValueError: it is no number, text or list.
    """
    if isinstance(label, bool) or not isinstance(label, (int, float, str, list)):
        raise ValueError(f"{place} is {str(label)[:SHOWN]!r}: expected one number or text")
    return json.dumps(label) if isinstance(label, (float, list)) else str(label)


def why_no_class(label: str) -> str | None:
    """Return what a label is instead of one class; None where it may be one."""
    return next((why for why, pattern in NOT_ONE_CLASS.items() if pattern.fullmatch(label)), None)


def classes_of(labels: Collection[str]) -> tuple[Literal["number", "name"], tuple[str, ...]]:
    """Return how labels stand for their classes, and the names of the classes, by number.

    Classes without images are rare. So numbers that do not start at 0, or leave out many, are names.
    """
    numbers = [int(label) for label in labels if is_number(label)]
    if len(numbers) < len(labels):
        return "name", tuple(sorted(labels))
    if min(numbers) == 0 and max(numbers) < 2 * len(numbers):
        return "number", tuple(map(str, range(max(numbers) + 1)))
    return "name", tuple(map(str, sorted(numbers)))


def is_number(label: str) -> bool:
    """Return True for the number of a class."""
    return label.isascii() and label.isdigit()


def spelled(label: str) -> str:
    """Return a label in its only spelling: 01 is 1."""
    return str(int(label)) if re.fullmatch("[0-9]{1,18}", label) else label


class Labels:
    """The numbers of the classes by their labels."""

    def __init__(self, rule: LabelRule, class_names: Sequence[str]) -> None:
        self._rule, self._classes = rule, len(class_names)
        labels = map(spelled, class_names) if rule.by == "name" else map(str, range(len(class_names)))
        self._numbers = {label: number for number, label in enumerate(labels)}
        # Nearly all labels are found by one look: the samples of tiny images are read in 12 microseconds each.
        self._plain = {} if rule.member == "json" else {label.encode(): n for label, n in self._numbers.items()}

    def number(self, data: bytes) -> int:
        """Return the class of a sample by the content of its label member.

        Raises:
            ValueError: it is none of the classes.
        """
        number = self._plain.get(data)
        if number is not None:
            return number
        text = self._rule.text(data)
        number = self._numbers.get(text)
        if number is None:
            known = "names" if self._rule.by == "name" else f"classes 0 to {self._classes - 1}"
            why = why_no_class(text)
            raise ValueError(f"label {text[:SHOWN]!r} is none of the {known}" + (f" but {why}" if why else ""))
        return number
