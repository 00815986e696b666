"""Samples that were skipped because they could not be read: counted, and reported once by shard and key."""

import sys
from collections.abc import Sequence

from tqdm import tqdm


class Skipped:
    """The samples that this rank skipped."""

    def __init__(self) -> None:
        self._count = 0
        self._reported: set[str] = set()

    def add(self, messages: Sequence[str]) -> None:
        """Count one sample for each message, and print on standard error those not reported before."""
        self._count += len(messages)
        for message in messages:
            if message not in self._reported:
                self._reported.add(message)
                tqdm.write(f"skipped: {message}", file=sys.stderr)

    def take(self) -> int:
        """Return the number of samples since the last call."""
        count, self._count = self._count, 0
        return count
