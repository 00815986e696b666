"""What tests of gates share."""

import pytest


@pytest.fixture
def compiled(monkeypatch):
    """The kernels, only for this test; skips where there is no compiler."""
    from dist_prune.gates.cpu_kernels import build

    monkeypatch.setattr(build, "_kernels", build._kernels)
    if not build.compile_kernels():
        pytest.skip("no C++ compiler: the plain operations serve")
