"""Imports point downward only; deepspeed has one door; data_tools stands alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEAVES = {"config", "distributed", "errors", "files", "runtime"}
MODEL = {"models", "measure", "pruning", "gates", "regularizers"}
ALLOWED = {
    "recipes": {"config", "errors"},
    "offline": {"training", "checkpoints", "engine", "methods", "data", "monitor", *MODEL, *LEAVES},
    "training": {"checkpoints", "engine", "methods", "data", "monitor", *MODEL, *LEAVES},
    "checkpoints": {"data", "monitor", *MODEL, *LEAVES},
    "engine": {"checkpoints", *LEAVES},
    "benchmark": {"pruning", "measure", "models", "monitor", *LEAVES},
    "export": {"pruning", "models", *LEAVES},
    "methods": {*MODEL, *LEAVES},
    "gates": {"pruning", "measure", "models", *LEAVES},
    "pruning": {"measure", "models", *LEAVES},
    "measure": LEAVES,
    "models": LEAVES,
    "study": {"monitor", *LEAVES},
    "monitor": LEAVES,
    "data": LEAVES,
    "regularizers": set(),
    **dict.fromkeys(LEAVES, LEAVES),
    "__init__": {*MODEL, *LEAVES},
}
WIRING = {"cli", "__main__"}  # these may import anything
USE_SHARDS = {"data", *WIRING}
FILES = sorted(path.relative_to(ROOT) for top in ("dist_prune", "data_tools") for path in (ROOT / top).rglob("*.py"))
MODULES = {".".join(path.with_suffix("").parts) for path in FILES}


def imported_modules(source: str, package: str) -> set[str]:
    """Full names of all imported modules, wherever the import stands; relative ones resolved."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            parts = {f"{module}.{alias.name}" for alias in node.names}
            below = {part for part in parts if is_module(part)}
            names |= below if below == parts else below | {module}
    return names


def is_module(name: str) -> bool:
    return name in MODULES or f"{name}.__init__" in MODULES


def imports_of(path: Path) -> set[str]:
    return imported_modules((ROOT / path).read_text(), ".".join(path.parent.parts))


def part_of(path_or_name) -> str:
    """The package or module of dist_prune that a file or a full module name belongs to."""
    if isinstance(path_or_name, Path):
        return path_or_name.with_suffix("").parts[1]
    return (path_or_name.split(".") + ["__init__"])[1]


def test_the_table_for_contributors_is_true():
    """Each row names the parts that its part imports, but for leaves."""
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("Only downward")[2].split("```")[1]
    lines = re.findall(r"^([\w, ]+?) +imports? ([^;\n]*)", table, re.MULTILINE)
    rows = {part: text for parts, text in lines for part in parts.split(", ")}
    assert len(rows) >= 10
    for part, text in rows.items():
        files = [path for path in FILES if path.parts[0] == "dist_prune" and part_of(path) == part]
        imported = {name for path in files for name in imports_of(path)}
        found = {part_of(name) for name in imported if name.startswith("dist_prune.")} - LEAVES - {part}
        found |= {"data_tools" for name in imported if name.startswith("data_tools")}
        named = set(re.findall(r"\w+", text)) & {*ALLOWED, "data_tools"}
        # A row may refer to another one: "and what methods import".
        if others := re.findall(r"(?:what|all that) (\w+)", text):
            assert found <= named.union(*(ALLOWED[other] for other in others)), part
        else:
            assert found == named - LEAVES, part


def test_the_parser_sees_every_kind_of_import():
    source = """
import a.b, dist_prune.gates.ops as ops
from dist_prune import distributed, UserError
from . import means
from ..models import Site
def late():
    from data_tools import ShardError
"""
    assert imported_modules(source, "dist_prune.gates") == {
        "a.b",
        "dist_prune.gates.ops",
        "dist_prune.distributed",
        "dist_prune",
        "dist_prune.gates.means",
        "dist_prune.models",
        "data_tools",
    }


def test_every_part_of_the_package_has_its_place():
    parts = {part_of(path) for path in FILES if path.parts[0] == "dist_prune"}
    assert parts - WIRING <= ALLOWED.keys(), "give the new part its place in ALLOWED"


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_downward(part):
    upward = [
        f"{path} imports {name}"
        for path in FILES
        if path.parts[0] == "dist_prune" and part_of(path) == part
        for name in imports_of(path)
        if name.split(".")[0] == "dist_prune" and part_of(name) not in ALLOWED[part] | {part}
    ]
    assert upward == []


def test_no_files_import_each_other_in_a_circle():
    """Type-checking imports included: a file in a circle cannot be read on its own."""
    graph = {
        ".".join(path.with_suffix("").parts): imports_of(path) & MODULES for path in FILES if path.name != "__init__.py"
    }
    # Files that import nothing that is left cannot be in a circle.
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert graph == {}


def test_the_shard_tools_import_nothing_of_dist_prune():
    tools = [path for path in FILES if path.parts[0] == "data_tools"]
    assert tools
    assert [path for path in tools for name in imports_of(path) if name.split(".")[0] == "dist_prune"] == []


def test_only_data_and_the_command_line_use_the_shard_tools():
    users = {
        part_of(path)
        for path in FILES
        for name in imports_of(path)
        if path.parts[0] == "dist_prune" and name.split(".")[0] == "data_tools"
    }
    assert users <= USE_SHARDS


def test_deepspeed_has_one_door():
    doors = [path for path in FILES for name in imports_of(path) if name.split(".")[0] == "deepspeed"]
    assert set(doors) == {Path("dist_prune/engine/deepspeed_import.py")}


def test_webdataset_writes_shards_and_streams_them_as_the_readme_says():
    readers = {
        path.name
        for path in (ROOT / "dist_prune").rglob("*.py")
        if re.search(r"^(from|import) webdataset", path.read_text(), re.MULTILINE)
    }
    assert readers == {"stream.py"}
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "our own reader reads them in an exact order, or the `webdataset` library as a stream" in readme


# Modules in the order in which they may load more, and what none of them up to there has loaded.
TRAINING = {"deepspeed", "tensorboard", "timm", "zeus"}
LOADS = [
    ("dist_prune.monitor.report", TRAINING | {"torch", "pandas"}),  # the page of one run
    ("dist_prune.study.comparison", TRAINING | {"torch"}),  # the page of several runs
    ("dist_prune.measure", TRAINING),
    ("dist_prune.offline", TRAINING),  # collapse, evaluate, naive baselines
]


def test_pages_and_offline_commands_are_made_without_the_libraries_of_training():
    """One process for all, since each start of Python with torch takes seconds."""
    code = f"""
import importlib, sys
for module, unwanted in {LOADS!r}:
    importlib.import_module(module)
    print(module, sorted(unwanted & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.splitlines() == [f"{module} []" for module, _ in LOADS], done.stderr
