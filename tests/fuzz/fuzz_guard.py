"""What a case may not do: take long or much memory, execute anything, write anywhere but into its folder."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 60  # for a case, on a machine that does other things as well
MEGABYTES = 1000  # that a case may need beyond what the ones before it have needed
_EXECUTES = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen",
    "socket.connect", "webbrowser.open", "pty.spawn", "marshal.loads",
}  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]
_TRUSTED = tuple({*sysconfig.get_paths().values(), str(_ROOT), "<frozen", "<__array_function__", "<string>"})


class Broken(BaseException):
    """A case did what no case may do; not an Exception, so that nothing in the program takes it for its own."""


class _Guard:
    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        self.hooked = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _EXECUTES and not _is_harmless(event, arguments):
            self._refuse(f"{event} {arguments!r}")
        if event == "exec" and not _is_ours(arguments[0]):
            self._refuse(f"exec of {getattr(arguments[0], 'co_filename', arguments[0])!r}")
        if event == "open" and isinstance(arguments[0], str) and _writes(arguments[1], arguments[2]):
            path = os.path.abspath(arguments[0])
            data = os.environ.get("DIST_PRUNE_DATA", self.folder)  # where the embedded data are made
            if not path.startswith((self.folder, data, "/dev/")):
                self._refuse(f"writes {path}")

    def _refuse(self, what: str) -> None:
        self.seen.append(what[:300])
        raise Broken(what[:300])


_guard = _Guard()


def _is_harmless(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether the import system loads what it has compiled, a rank hears from its own worker, or a library of the
    system is asked by its bare name."""
    if event == "marshal.loads":
        return _under("<frozen importlib")
    if event == "pickle.find_class":
        return _under(f"{os.sep}multiprocessing{os.sep}queues.py")
    if event == "socket.connect":  # to a worker, for the tensors that it shares
        return _under(f"{os.sep}multiprocessing{os.sep}resource_sharer.py")
    return event == "ctypes.dlopen" and os.sep not in str(arguments[0])


def _under(name: str) -> bool:
    """Whether a file whose path contains ``name`` is among the callers."""
    frame = sys._getframe(2)
    while frame is not None:
        if name in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _is_ours(code: Any) -> bool:
    """Whether code comes from a module, or is what the standard library makes of a class's fields."""
    name = getattr(code, "co_filename", "?")
    if name == "<string>":  # dataclasses, namedtuple and the like, never from data: those are called from a library
        caller = sys._getframe(3).f_code.co_filename
        return caller.startswith(tuple(sysconfig.get_paths().values())) or _under("<frozen importlib")
    return name.startswith(_TRUSTED) or "namedtuple" in name or name.startswith("<eval_with_key>")


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Raise Broken where a case executes something, takes more than ``SECONDS`` or writes outside of ``folder``."""
    if not _guard.hooked:
        sys.addaudithook(_guard)
        _guard.hooked = True

    def too_long(*_: Any) -> None:
        raise Broken(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    # Where Python itself cannot be interrupted.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # a test has a limit of its own
    _guard.folder, _guard.seen = str(folder.resolve()), []
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
        if _guard.seen:
            raise Broken(_guard.seen[0])
        needed = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) / 1024
        if needed > MEGABYTES:
            raise Broken(f"took {needed:.0f} MB")
    finally:
        _guard.folder = None
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, remaining)
        faulthandler.cancel_dump_traceback_later()
