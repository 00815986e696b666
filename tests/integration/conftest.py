"""Runs of the real command line, as a user types it."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from commands import Finished, quick, run_command, run_forked, run_forked_ranks


@pytest.fixture(scope="session")
def command(data_home):
    """Run a command line in a new process, with a data folder of its own; fails after ``seconds``."""
    return functools.partial(run_command, data_home=data_home)


@pytest.fixture(scope="session")
def forked(data_home):
    """The same in a forked process: for all tests that do not depend on how Python starts."""
    return functools.partial(run_forked, data_home=data_home)


@pytest.fixture(scope="session")
def forked_ranks(data_home):
    """The same in several ranks, as a launcher starts them."""
    return functools.partial(run_forked_ranks, data_home=data_home)


@pytest.fixture(scope="session")
def train(forked):
    """``python launch/train.py`` with a quick setting of the embedded recipe."""

    def run(*words: str | Path, ds: str = "zero2", settings: tuple[str, ...] = ()) -> Finished:
        return forked(*quick(*words, ds=ds, settings=settings))

    return run


@pytest.fixture(scope="session")
def finished_run(command, shared) -> tuple[Path, Finished]:
    """One quick finished run that several tests look at, in a new process as a user starts it."""

    def make(folder: Path) -> Finished:
        done = command(*quick("--out", folder / "quick"))
        assert done.code == 0, done.err
        return done

    folder, done = shared("finished_run", make)
    return folder / "quick", done
