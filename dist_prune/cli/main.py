"""The two programs of the project, ``launch/train.py`` and ``dist-prune``, and how they end.

A user's mistake is one line on standard error and exit code 2; a run that stopped on request after saving
exits 3; any other error exits 1 with its stack trace.
"""

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from dist_prune import __version__
from dist_prune.cli.library_messages import hide_library_messages
from dist_prune.cli.runs import benchmark, collapse, evaluate, export, naive, report
from dist_prune.cli.shards import shards
from dist_prune.cli.train import recipes, train
from dist_prune.errors import LocalRankError, RunError, UserError, nearest, one_line
from dist_prune.runtime.folders import check_folders
from dist_prune.runtime.launch import complete_environment, forget_launcher, is_silent, world_size
from dist_prune.runtime.streams import secure_streams

DONE, FAILED, USER_ERROR, STOPPED = 0, 1, 2, 3
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    command.__name__: command for command in (recipes, collapse, evaluate, export, benchmark, naive, report, shards)
}
_PATIENCE = 5.0  # seconds that training waits for a terminal that was stopped (Ctrl-S)
_PATHS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def train_main(arguments: Sequence[str]) -> NoReturn:
    """Run the program of ``launch/train.py``."""
    secure_streams(_PATIENCE)
    hide_library_messages()
    exit_with(lambda: _train(arguments))


def _train(arguments: Sequence[str]) -> int:
    # Before the first error: only rank 0 may print it, under every launcher.
    complete_environment()
    check_folders()
    return DONE if train(arguments) else STOPPED


def main() -> NoReturn:
    """Run the ``dist-prune`` command."""
    secure_streams()
    forget_launcher()
    hide_library_messages()
    exit_with(lambda: _command(sys.argv[1:]))


def _command(arguments: Sequence[str]) -> int:
    check_folders()
    chosen = arguments[0] if arguments else "--help"
    if chosen in ("-h", "--help"):
        print("usage: dist-prune COMMAND [options]\n")
        for name, command in COMMANDS.items():
            print(f"  {name:10} {(command.__doc__ or '').splitlines()[0]}")
        print("\n  --version  Print the version.")
    elif chosen == "--version":
        print(f"dist-prune {__version__}")
    elif chosen in COMMANDS:
        COMMANDS[chosen](list(arguments[1:]))
    else:
        raise UserError(f"unknown command '{chosen}'; {nearest(chosen, [*COMMANDS, '--help', '--version'])}")
    if lost := getattr(sys.stdout, "lost", None):
        raise RunError(f"the output is incomplete: {lost.strerror}")
    return DONE


def exit_with(program: Callable[[], int]) -> NoReturn:
    """Run ``program``, turn its errors into lines and exit codes, and end together with the other ranks."""
    _interrupt_once()
    line = ""
    try:
        code = program()
    except KeyboardInterrupt:
        code, line = FAILED, "interrupted; continue with --resume from what was saved before"
    except LocalRankError as error:
        if not error.reported:
            print(one_line(f"error: {error}"), file=sys.stderr)
        sys.exit(FAILED)
    except Exception as error:
        code, line = _report_error(error)
    # By the launcher's variables: the process group may not exist yet.
    if line and not is_silent():
        print(one_line(line), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # A single process has no ranks to wait for. Without this check a typo would load torch to shut down.
    if "dist_prune.distributed" in sys.modules or world_size() > 1:
        from dist_prune import distributed

        distributed.shutdown(60 if code in (DONE, STOPPED) else 15, line)
    sys.stderr.flush()
    sys.exit(code)


def _interrupt_once() -> None:
    """Let the first Ctrl-C end the program, and ignore further ones while it cleans up, which takes seconds."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def _report_error(error: Exception) -> tuple[int, str]:
    """Return exit code and line of an error that ends all ranks together; end with any other at once."""
    # Importing data_tools takes half a second; an error of its own means that it has been imported.
    tools = sys.modules.get("data_tools")
    if isinstance(error, UserError) or (tools and isinstance(error, tools.ShardError)):
        return USER_ERROR, f"error: {error}"
    if isinstance(error, RunError):
        return FAILED, f"error: {error}"
    from dist_prune import distributed
    from dist_prune.runtime.failures import out_of_memory

    if isinstance(error, OSError) and error.filename and distributed.world_size() == 1:
        code = USER_ERROR if isinstance(error, _PATHS) else FAILED
        return code, f"error: {error.filename}: {error.strerror}"
    reason = out_of_memory(error)
    if reason is None:
        traceback.print_exc()
    elif distributed.announce_exit() is not False:
        print(one_line(f"error: rank {distributed.rank()} {reason}"), file=sys.stderr)
    # At once, without a barrier: other ranks may be blocked in a collective that this rank never joins.
    sys.exit(FAILED)
