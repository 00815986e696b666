"""Errors that the command line turns into one line instead of a stack trace (a leaf)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user: the message says in one line what is wrong and how to mend it."""


class RunError(Exception):
    """A run that cannot go on, for a reason that one line can say."""


class LoneError(RunError):
    """A RunError that one rank meets by itself. It ends at once: the others may be waiting for it, or be gone.

    told: another rank has said why already.
    """

    def __init__(self, message: str, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


class NothingToEvaluate(UserError):
    """There was no sample on any rank; all ranks raise it together."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown ``name``: the nearest known one, or all of them where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(names)
