"""The exception for every fault of data that a user can fix, and the helpers that word its messages."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

from pydantic import ValidationError


class ShardError(Exception):
    """A fault of the data; the message is one line: what is wrong, where, and how to fix it."""

    def __init__(self, message: str) -> None:
        # Libraries raise messages of several lines, and ours quote them.
        super().__init__(re.sub(r"\s*\n\s*", " ", message))


class RawShardsError(ShardError):
    """Shards of earlier versions, which held arrays of pixels."""


class LocalDiskError(ShardError):
    """This machine cannot hold a copy of the data: no fault of any sample, so none may be skipped for it."""


def unknown(kind: str, name: str, known: Iterable[str]) -> ShardError:
    """Return the error for a ``name`` that is none of the known ones."""
    return ShardError(f"unknown {kind} {name!r}{suggestion(name, known)}; known: {', '.join(known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'X'?)"`` for the known name nearest to ``name``, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


@contextlib.contextmanager
def reported(
    what: str,
    kinds: type[Exception] | tuple[type[Exception], ...] = OSError,
    fix: str = "",
    to: type[ShardError] = ShardError,
) -> Iterator[None]:
    """Turn errors of ``kinds`` into one of type ``to``: ``what``, the reason, and how to ``fix`` it."""
    try:
        yield
    except ShardError:
        raise
    except kinds as error:
        if isinstance(error, ValidationError):
            reason = _first_problem(error)
        else:  # the message of an OSError repeats the path
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise to(f"{what}: {reason}{fix}") from error


def _first_problem(error: ValidationError) -> str:
    """Return what pydantic found first: where, what, and the value, shortened."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = re.sub("^Value error, ", "", first["msg"])
    # For a model's own check or a missing key the input is the whole object, which is too long to show.
    if first["type"] not in ("value_error", "missing", "json_invalid"):
        message += f", found {first['input']!r:.60}"
    return f"{place}: {message}" if place else message
