"""Shards of the embedded digits at a URL, and a machine without a network."""

import fsspec
import pytest


@pytest.fixture
def memory(digits) -> str:
    """The same shards under a URL of fsspec's file system in memory."""
    url = "memory://bucket/digits"
    fsspec.filesystem("memory").put(f"{digits}/", "/bucket/digits/", recursive=True)
    yield url
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture
def offline(tmp_path, monkeypatch) -> None:
    """Downloads fail, and nothing was downloaded before."""

    def fail(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path))
