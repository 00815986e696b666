"""What tests of gates share."""

import pytest


@pytest.fixture
def compiled(monkeypatch):
    """The kernels, only for this test; skips where there is no compiler."""
    from dist_prune.gates import kernels

    monkeypatch.setattr(kernels, "_kernels", kernels._kernels)
    if not kernels.compile_kernels():
        pytest.skip("no C++ compiler: the plain operations serve")
