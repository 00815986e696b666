"""Shards of the embedded digits, in a folder and at a URL."""

from pathlib import Path

import fsspec
import pytest

from data_tools import make_shards


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("storage") / "digits"
    make_shards("digits", None, folder)
    return folder


@pytest.fixture
def memory(digits) -> str:
    """The same shards under a URL of fsspec's file system in memory."""
    url = "memory://bucket/digits"
    fsspec.filesystem("memory").put(f"{digits}/", "/bucket/digits/", recursive=True)
    yield url
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
