"""The one exception for faults of data that a user can fix, and hints for mistyped names."""

import difflib
import re
from collections.abc import Iterable


class ShardError(Exception):
    """A fault of the data; the message is one line: what is wrong, where, and how to fix it."""

    def __init__(self, message: str) -> None:
        # Libraries raise messages of several lines, and ours quote them.
        super().__init__(re.sub(r"\s*\n\s*", " ", message))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'X'?)"`` for the known name nearest to ``name``, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
