"""Every drill that docs/reliability.md names exists, and every file of drills is named there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def names_in(path: Path) -> set[str]:
    """The names of the test functions of a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_table_names_tests_that_exist():
    table = (ROOT / "docs" / "reliability.md").read_text().split("\n## Drills\n")[1]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert len(rows) >= 50
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, f"no test: {row}"
        for file, test in named:
            path = ROOT / "tests" / ("drills" if "/" not in file else "") / file
            assert path.is_file(), row
            assert test in names_in(path), f"{file} has no {test}"


def test_every_drill_is_in_the_table():
    page = (ROOT / "docs" / "reliability.md").read_text()
    files = sorted((ROOT / "tests" / "drills").glob("test_*.py"))
    missing = [f"{path.name}::{test}" for path in files for test in names_in(path) if test.startswith("test_")]
    missing = [name for name in missing if f"`{name}`" not in page and "benchmarks_start" not in name]
    assert missing == []
