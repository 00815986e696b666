"""Runs of the real command line, as a user types it."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from commands import QUICK, Finished, run_command


@pytest.fixture(scope="session")
def command(data_home):
    """Run a command line in the repository, with a data folder of its own; fails after ``seconds``."""
    return functools.partial(run_command, data_home=data_home)


@pytest.fixture(scope="session")
def train(command):
    """``python launch/train.py`` with a quick setting of the embedded recipe."""

    def run(
        *words: str | Path, ds: str = "zero2", settings: tuple[str, ...] = (), seconds: float = 180
    ) -> Finished:
        config = words and "--ds_config" in words
        given = [] if config else ["--ds_config", f"ds_configs/{ds}.json"]
        return command(
            "python", "launch/train.py", *given, *words, "--set", *QUICK, *settings, seconds=seconds
        )

    return run


@pytest.fixture(scope="session")
def finished_run(train, tmp_path_factory):
    """One quick finished run that several tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "quick"
    done = train("--out", folder)
    assert done.code == 0, done.err
    return folder, done
