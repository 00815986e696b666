"""Shared by all tests: a data folder of their own, so that nothing is written to the user's."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from data_tools import make_shards
from data_tools.writers import ShardSet
from dist_prune.runtime.environment import prepare_environment

# Operations are compiled into the folder that runs use. Otherwise a test that imports DeepSpeed first, or the kernels
# without it, would compile them again into torch's own folder, a minute each on a fresh machine.
prepare_environment()


gc.disable()


def pytest_collection_finish() -> None:
    """What collection has imported stays: the collector, which would visit all of it each time, leaves it out."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, slow files are spread over the list: else one process would get most of them, and end last."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: hashlib.sha256(item.nodeid.split("::")[0].encode()).digest())


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Callable[[str, Callable[[Path], Any]], tuple[Path, Any]]:
    """Let one process of pytest-xdist make a folder that all of them read; returns it and what ``make`` returned."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def share(name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        folder, result = base / f"shared-{name}", base / f"shared-{name}.result"
        with FileLock(f"{folder}.lock"):
            if not result.exists():
                shutil.rmtree(folder, ignore_errors=True)  # half of it, where another process has failed
                folder.mkdir()
                made = make(folder)
                result.write_bytes(pickle.dumps(made))
        return folder, pickle.loads(result.read_bytes())

    return share


@pytest.fixture(scope="session")
def data_home(shared) -> Path:
    """The folder where the first run makes the embedded data set, for all tests."""
    return shared("data", lambda folder: None)[0]


@pytest.fixture(autouse=True)
def data_folder(monkeypatch, data_home):
    """The environment points at ``data_home``; processes that a test starts inherit it."""
    monkeypatch.setenv("DIST_PRUNE_DATA", str(data_home))
    return data_home


@pytest.fixture(scope="session")
def digits(shared) -> Path:
    """Shards of the embedded data set, for reading only."""
    folder, _ = shared("shards", lambda folder: make_shards("digits", None, folder / "digits"))
    return folder / "digits"


@pytest.fixture
def interrupted(monkeypatch):
    """Makes shards of the embedded data set until Ctrl-C, after ``shards`` of them; returns their names."""

    def make(shards: int, out, **request) -> list[str]:
        write, written = ShardSet.write, []

        def stop(self, tar, plan):
            if len(written) == shards:
                raise KeyboardInterrupt
            written.append(plan.name)
            return write(self, tar, plan)

        with monkeypatch.context() as patch:
            patch.setattr(ShardSet, "write", stop)
            with pytest.raises(KeyboardInterrupt):
                make_shards("digits", None, out, **request)
        return written

    return make
