"""Shared by all tests: a data folder of their own, so that nothing is written to the user's."""

from __future__ import annotations

import hashlib
import os

import pytest

from data_tools import make_shards
from data_tools.writers import RawWriter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, slow files are spread over the list: else one process would get most of them, and end last."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: hashlib.sha256(item.nodeid.split("::")[0].encode()).digest())


@pytest.fixture(scope="session")
def data_home(tmp_path_factory):
    """Where the embedded data set is made once for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def data_folder(monkeypatch, data_home):
    """The environment points at ``data_home``; processes that a test starts inherit it."""
    monkeypatch.setenv("DIST_PRUNE_DATA", str(data_home))
    return data_home


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Shards of the embedded data set, for reading only."""
    folder = tmp_path_factory.mktemp("shards") / "digits"
    make_shards("digits", None, folder)
    return folder


@pytest.fixture
def interrupted(monkeypatch):
    """Makes shards of the embedded data set until Ctrl-C, after ``shards`` of them; returns their names."""

    def make(shards: int, out, **request) -> list[str]:
        write, written = RawWriter.write, []

        def stop(self, tar, plan, split):
            if len(written) == shards:
                raise KeyboardInterrupt
            written.append(plan.name)
            return write(self, tar, plan, split)

        with monkeypatch.context() as patch:
            patch.setattr(RawWriter, "write", stop)
            with pytest.raises(KeyboardInterrupt):
                make_shards("digits", None, out, **request)
        return written

    return make
