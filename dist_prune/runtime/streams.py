"""Standard output and error whose reader may go away: an ssh session ends, a pipe is closed (a leaf)."""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

_NO_READER = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # of a pipe, a terminal, a socket


class BrokenPipeTolerantStream:
    """A text stream that discards its output, without an error, once its reader is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do nothing if the reader is gone."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing if the reader is gone."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., Any], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            if error.errno not in _NO_READER:
                raise
            # Redirect the file descriptor itself: it also takes what is still in buffers, at the interpreter's exit
            # too, and the output of libraries below Python.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def tolerate_broken_pipes() -> None:
    """Let no print end the program: a run whose launcher is gone must save first."""
    sys.stdout, sys.stderr = BrokenPipeTolerantStream(sys.stdout), BrokenPipeTolerantStream(sys.stderr)
