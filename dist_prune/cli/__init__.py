"""The command line: ``launch/train.py`` on every rank, and the ``dist-prune`` command.

A user's mistake is one line on standard error and exit code 2; a run that was asked to stop and is saved
exits 3; anything unforeseen exits 1 with its stack trace.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from dist_prune import distributed
from dist_prune.cli.arguments import Parser, positive
from dist_prune.cli.library_messages import hide_library_messages
from dist_prune.errors import LocalRankError, RunError, UserError, nearest, one_line
from dist_prune.runtime.launch import complete_environment
from dist_prune.runtime.streams import tolerate_broken_pipes

DONE, FAILED, USER_ERROR, STOPPED = 0, 1, 2, 3
_PATHS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def train_main(arguments: Sequence[str]) -> NoReturn:
    """The program of ``launch/train.py``."""
    tolerate_broken_pipes()
    hide_library_messages()
    complete_environment()  # print from rank 0 only, under every launcher
    _exit_with(lambda: _train(arguments))


def main() -> NoReturn:
    """The ``dist-prune`` command."""
    hide_library_messages()
    _exit_with(lambda: _command(sys.argv[1:]))


def _command(arguments: Sequence[str]) -> int:
    from dist_prune.cli.commands import COMMANDS

    chosen = arguments[0] if arguments else "--help"
    if chosen in ("-h", "--help"):
        print("usage: dist-prune COMMAND [options]\n")
        for name, command in COMMANDS.items():
            print(f"  {name:10} {(command.__doc__ or '').splitlines()[0]}")
        return DONE
    if chosen not in COMMANDS:
        raise UserError(f"unknown command '{chosen}'; {nearest(chosen, COMMANDS)}")
    COMMANDS[chosen](list(arguments[1:]))
    return DONE


def _exit_with(program: Callable[[], int]) -> NoReturn:
    """Run ``program``, turn its errors into lines and exit codes, and leave together with the other ranks."""
    try:
        with _interrupted_once():
            code = program()
    except KeyboardInterrupt:
        code = _report("interrupted; what was saved before can be resumed with --resume", FAILED)
    except LocalRankError as error:
        if not error.reported:
            print(one_line(f"error: {error}"), file=sys.stderr)
        sys.exit(FAILED)
    except Exception as error:
        code = _report_error(error)
    sys.stdout.flush()
    sys.stderr.flush()
    distributed.shutdown(seconds=60 if code in (DONE, STOPPED) else 15)
    sys.stderr.flush()
    sys.exit(code)


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """Let a first Ctrl-C end the program, and no further one what it does then: that takes seconds at most."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def _report_error(error: Exception) -> int:
    from data_tools import ShardError

    if isinstance(error, (UserError, ShardError)):
        return _report(f"error: {error}", USER_ERROR)
    if isinstance(error, RunError):
        return _report(f"error: {error}", FAILED)
    if isinstance(error, OSError) and error.filename and distributed.world_size() == 1:
        return _report(
            f"error: {error.filename}: {error.strerror}", USER_ERROR if isinstance(error, _PATHS) else FAILED
        )
    from dist_prune.runtime.failures import out_of_memory

    reason = out_of_memory(error)
    if reason is None:
        traceback.print_exc()
    elif distributed.announce_exit() is not False:
        print(one_line(f"error: rank {distributed.rank()} {reason}"), file=sys.stderr)
    sys.exit(FAILED)  # at once: others may be waiting for this rank


def _report(line: str, code: int) -> int:
    if distributed.is_main():
        print(one_line(line), file=sys.stderr)
    return code


def _train(arguments: Sequence[str]) -> int:
    options = _train_parser().parse(arguments)
    from dist_prune.config.override import override, settings_keys
    from dist_prune.recipes import recipe

    settings = [f"data={json.dumps(options.data)}"] if options.data else []
    config = override(recipe(options.recipe), settings + options.set)
    from dist_prune.training.run import Options, run

    done = run(
        config,
        Options(
            options.ds_config,
            options.out,
            options.resume,
            options.max_steps,
            options.max_hours,
            settings_keys(options.set),
        ),
    )
    return DONE if done else STOPPED


def _train_parser() -> Parser:
    parser = Parser(
        prog="launch/train.py", description="Train a gated network and collapse it to a small one."
    )
    parser.add_argument(
        "--ds_config", "--deepspeed_config", required=True, help="DeepSpeed JSON, see ds_configs/"
    )
    parser.add_argument("--recipe", default="digits", help="a name that 'dist-prune recipes' lists")
    parser.add_argument("--data", help="a data set's name, a folder of shards, or a pattern of shard names")
    parser.add_argument("--out", help="run folder (default: runs/RECIPE-TIMESTAMP)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("--max_steps", type=positive(int), help="save and stop after so many more steps")
    parser.add_argument("--max_hours", type=positive(float), help="save and stop after so many hours")
    parser.add_argument(
        "--set", action="extend", default=[], nargs="+", metavar="KEY=VALUE", help="override recipe fields"
    )
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # launchers pass it
    return parser
