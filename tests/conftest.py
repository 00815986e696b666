"""Shared by all tests: a data folder of their own, so that nothing is written to the user's."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def data_home(tmp_path_factory):
    """Where the embedded data set is made once for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def data_folder(monkeypatch, data_home):
    """The environment points at ``data_home``; processes that a test starts inherit it."""
    monkeypatch.setenv("DIST_PRUNE_DATA", str(data_home))
    return data_home
