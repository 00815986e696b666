"""Standard output and error that may be closed, full, stalled or left by their reader, while the program continues."""

import contextlib
import errno
import os
import select
import sys
from typing import Any, TextIO

_NO_READER = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # of a pipe, a terminal, a socket
_SURE_TO_FIT = 1024  # characters; a pipe that has room takes 4096 bytes at once


class BrokenPipeTolerantStream:
    """A text stream that discards its output, without an error, once it cannot be written to.

    Args:
        stream: standard output or error.
        patience: seconds to wait for a reader that stalls (Ctrl-S); what comes then is discarded until it reads again.
            None waits without a limit.
    """

    def __init__(self, stream: TextIO, patience: float | None = None) -> None:
        self._stream, self._patience = stream, patience
        self._is_stalled = False
        self.lost: OSError | None = None  # why the output is incomplete

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write at once, or do nothing if that is impossible."""
        for start in range(0, len(text), _SURE_TO_FIT):
            if self._has_room():
                self._send(text[start : start + _SURE_TO_FIT])
        return len(text)

    def flush(self) -> None:
        """Do nothing: ``write`` leaves nothing behind."""

    def _has_room(self) -> bool:
        # One wait for each stall: the other ranks wait for this one meanwhile.
        room: list[TextIO] = [self._stream]
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor never stalls
            _, room, _ = select.select([], room, [], 0 if self._is_stalled else self._patience)
        self._is_stalled = not room
        return bool(room)

    def _send(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            if error.errno not in _NO_READER:
                self.lost = self.lost or error
            # Redirect the file descriptor itself: it also takes what is still in buffers, at the interpreter's exit
            # too, and the output of libraries below Python.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def secure_streams(patience: float | None = None) -> None:
    """Let no print end the program, for what follows: a run whose launcher is gone must save first."""
    for number in (0, 1, 2):
        # Otherwise the next file that is opened gets the number of a closed one, and what libraries print as content.
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has None for a stream that was closed at its start.
    out, errors = sys.stdout or open(1, "w", closefd=False), sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = BrokenPipeTolerantStream(out, patience), BrokenPipeTolerantStream(errors, patience)
