"""The measuring scripts of benchmarks/ follow what they measure: each one starts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from drill import ROOT

pytestmark = pytest.mark.drill


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_a_benchmark_starts(script):
    command = [sys.executable, ROOT / "benchmarks" / script, "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: ")
