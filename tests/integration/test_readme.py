"""The README's Python code runs as it stands."""

from __future__ import annotations

import re

from commands import ROOT


def test_the_code_of_the_readme_runs(forked, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        done = forked("python", "-c", block, cwd=tmp_path)
        assert done.code == 0, done.err
    assert (tmp_path / "sliced" / "model.safetensors").exists()
