"""What was left out because it could not be read: counted, and told once by shard and key."""

import sys
from collections.abc import Sequence

from tqdm import tqdm


class Skipped:
    """The samples that this rank left out."""

    def __init__(self) -> None:
        self._count = 0
        self._told: set[str] = set()

    def add(self, messages: Sequence[str]) -> None:
        """Count one sample for each message, and print on standard error what was not told before."""
        self._count += len(messages)
        for message in messages:
            if message not in self._told:
                self._told.add(message)
                tqdm.write(f"skipped: {message}", file=sys.stderr)

    def take(self) -> int:
        """Return the number of samples since the last call."""
        count, self._count = self._count, 0
        return count
