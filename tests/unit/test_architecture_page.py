"""Every file and name of docs/architecture.md exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def names_of(path: Path) -> set[str]:
    """The functions and classes of a file, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def test_the_walks_name_files_and_functions_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text()
    walks = re.findall(r"`([\w/]+\.py)`((?:(?: and)? `[\w.]+`)+)", page)
    missing = [
        f"{file}: {name}"
        for file, listed in walks
        for name in re.findall(r"`([\w.]+)`", listed)
        if name not in names_of(ROOT / "dist_prune" / file)
    ]
    assert missing == []
    assert len(walks) >= 25
    steps = [re.findall(r"^\d+\. ", walk, re.MULTILINE) for walk in page.split("\n## ")[2:]]
    assert [0 < len(walk) <= 10 for walk in steps] == [True] * 3
