"""Standard output and error whose reader may go away: an ssh session ends, a pipe is closed (a leaf)."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # a pipe, a terminal, a socket without a reader


class BrokenPipeTolerantStream:
    """A text stream that is written to while somebody reads it; what is written after that is lost, and no error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do nothing where nobody reads."""
        with self._perhaps_unheard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing where nobody reads."""
        with self._perhaps_unheard():
            self._stream.flush()

    @contextlib.contextmanager
    def _perhaps_unheard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # Takes what is still in buffers, and what others write.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def outlive_readers() -> None:
    """Let no print end the program: a run whose launcher is gone has to save first."""
    sys.stdout, sys.stderr = BrokenPipeTolerantStream(sys.stdout), BrokenPipeTolerantStream(sys.stderr)
