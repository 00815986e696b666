"""Commands as a user types them: in processes of their own, or forked from one that has imported everything."""

from __future__ import annotations

import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranks import FORKSERVER, as_a_user_starts_it, free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# Seconds for a command: the first one on a machine compiles operations, a minute of processor time.
LIMIT = 300
QUICK = ["model=resnet8", "epochs=2", "mask_samples=128", "log_every=1"]


@dataclass
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The non-empty lines of standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


def environment(data_home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user in the repository, without the variables of a launcher."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return inherited | {
        "DIST_PRUNE_DATA": str(data_home),
        "PATH": f"{BIN}{os.pathsep}{inherited['PATH']}",
        "PYTHONPATH": str(ROOT),
        **more,
    }


def run_command(*words: Any, data_home: Path, seconds: float = LIMIT, cwd: Path = ROOT) -> Finished:
    """Run a command line in a new process; raise TimeoutExpired after ``seconds``."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(data_home),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Forked:
    """A command in a forked process, which starts within a tenth of a second instead of after all imports.

    The command is ``python SCRIPT ...``, ``python -c CODE``, ``dist-prune ...``, or a function and its arguments.
    """

    def __init__(self, *words: Any, variables: dict[str, str], cwd: Path = ROOT) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("out", "err")]
        program = words[0] if callable(words[0]) else _program
        arguments = words[1:] if callable(words[0]) else [str(word) for word in words]
        begin = functools.partial(_begin, variables, cwd, self._files, program, arguments)
        self.process = FORKSERVER.Process(target=begin)  # no daemon: those may not have workers that read data
        self.process.start()

    def wait(self, seconds: float = LIMIT) -> Finished:
        """Return the end of the command; AssertionError if it does not come in time."""
        self.process.join(seconds)
        ended, (out, err) = self.process.exitcode, [file.read_text() for file in self._files]
        assert ended is not None, f"still running after {seconds} s; its standard error:\n{err}"
        return Finished(ended, out, err)

    def close(self) -> None:
        """Kill the process if it is still there, and remove what it printed."""
        self.process.kill()
        self.process.join()
        self._folder.cleanup()

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_forked(*words: Any, data_home: Path, seconds: float = LIMIT, cwd: Path = ROOT) -> Finished:
    """Run a command in a forked process."""
    with Forked(*words, variables=environment(data_home), cwd=cwd) as forked:
        return forked.wait(seconds)


def run_forked_ranks(
    world_size: int, *words: Any, data_home: Path, seconds: float = LIMIT, cwd: Path = ROOT
) -> list[Finished]:
    """Run a command in so many ranks, as a launcher would start them; return how each rank ended."""
    shared = {
        "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    variables = [environment(data_home, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(world_size)]
    ranks = [Forked(*words, variables=of_rank, cwd=cwd) for of_rank in variables]
    try:
        return [rank.wait(seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.close()


def _begin(variables: dict[str, str], cwd: Path, files: list[Path], program: Any, arguments: Any) -> None:
    as_a_user_starts_it()
    os.environ.clear()  # of the process that this one was forked from, which may be older than the test
    os.environ.update(variables)
    os.chdir(cwd)
    for number, file in enumerate(files, 1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    program(*arguments)


def _program(name: str, *words: str) -> None:
    sys.argv = [name, *words]
    if name == "dist-prune":
        from dist_prune.cli.main import main

        main()
    elif words[0] == "-c":
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def quick(*words: Any, ds: str = "zero2", settings: tuple[str, ...] = ()) -> list[Any]:
    """Return the command that trains a short version of the embedded recipe."""
    given = ["--ds_config", f"ds_configs/{ds}.json", *words]
    return ["python", "launch/train.py", *given, "--set", *QUICK, *settings]


def records(folder: Path, kind: str) -> list[dict]:
    """Return the records of one kind in a run folder's metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]
