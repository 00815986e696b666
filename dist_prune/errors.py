"""Errors that the command line turns into one line instead of a stack trace (a leaf)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST_SHOWN = 200  # characters of a value in a message


class DistPruneWarning(UserWarning):
    """A warning of this package; our programs show no others (cli/library_messages.py)."""


class UserError(Exception):
    """A mistake of the user; the message is one line: what is wrong and how to fix it."""


class RunError(Exception):
    """A run that cannot continue, for a reason that fits in one line."""


class LocalRankError(RunError):
    """A RunError of one rank alone. The rank ends at once: the others may be waiting for it, or be gone.

    reported: another rank has reported the cause already.
    """

    def __init__(self, message: str, reported: bool = False) -> None:
        super().__init__(message)
        self.reported = reported


class NothingToEvaluate(UserError):
    """No rank had a sample to evaluate; all ranks raise it together."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown ``name``: the nearest known one, or all of them where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(names)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(text: str) -> str:
    """``text`` with unprintable characters replaced by spaces: quoted text may be untrusted."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the dotted place of the first problem, and the problem with the value found, shortened."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    found = repr(first.get("input"))
    shown = found if len(found) <= _LONGEST_SHOWN else f"{found[:_LONGEST_SHOWN]}..."
    return ".".join(str(part) for part in first["loc"]), f"{message} (got {shown})"
