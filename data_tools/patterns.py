"""Names of shards by a pattern with braces, and the folder that they share."""

import itertools
import re
from collections.abc import Sequence

import braceexpand

from data_tools.errors import ShardError, reported

MOST_SHARDS = 1_000_000


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for.

    Raises:
        ShardError: its braces are not in order, or it stands for more than ``MOST_SHARDS`` names.
    """
    # Before any is made: a pattern of a few bytes can stand for more names than there is memory.
    if _most_names(pattern) > MOST_SHARDS:
        raise ShardError(f"{pattern} names more than {MOST_SHARDS:,} shards")
    with reported(pattern, ValueError, fix="; expected FOLDER/X-{000000..000004}.tar"):
        return list(braceexpand.braceexpand(pattern))


def _most_names(pattern: str) -> int:
    """Return a bound on the names that a pattern stands for: the product of its braces, nested ones too."""
    count = 1
    while innermost := re.search(r"\{([^{}]*)\}", pattern):
        ends = re.match(r"(-?\d+)\.\.(-?\d+)", innermost[1])
        letters = 52 if ".." in innermost[1] else innermost[1].count(",") + 1
        count *= abs(int(ends[2]) - int(ends[1])) + 1 if ends else letters
        pattern = pattern[: innermost.start()] + pattern[innermost.end() :]
    return count


def common_folder(paths: Sequence[str]) -> str:
    """Return the folder that all paths or URLs are in or below; empty if there is none."""
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    same = itertools.takewhile(lambda names: len(set(names)) == 1, levels)
    return "/".join(names[0] for names in same)
