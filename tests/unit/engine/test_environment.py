"""What a rank makes of the environment that a launcher, an ssh session or nobody has prepared for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_prune.engine.cpu import ranks_here, threads_of_a_rank


def test_operations_are_compiled_by_the_ninja_of_this_python_also_where_the_environment_is_not_active():
    program = (
        "import dist_prune.engine.deepspeed_engine, os, shutil; print(os.path.dirname(shutil.which('ninja')))"
    )
    bare = {**os.environ, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=bare, capture_output=True, text=True, check=True, timeout=240
    )
    assert Path(done.stdout.strip()) == Path(sys.executable).parent


def test_environments_compile_into_folders_of_their_own_unless_the_user_names_one():
    program = "import dist_prune.engine.deepspeed_engine, os; print(os.environ['TORCH_EXTENSIONS_DIR'])"

    def folder(prefix: str, **given: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "TORCH_EXTENSIONS_DIR"} | given
        words = [sys.executable, "-c", f"import sys; sys.prefix = {prefix!r}; {program}"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=240)
        return done.stdout.strip()

    assert folder("/here") == folder("/here") != folder("/there")
    assert folder("/here", TORCH_EXTENSIONS_DIR="/mine") == "/mine"


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "8"}, 8),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 4),  # torchrun
        ({"WORLD_SIZE": "8", "LOCAL_SIZE": "2"}, 2),  # deepspeed
    ],
)
def test_the_ranks_of_this_machine_are_counted_under_every_launcher(monkeypatch, given, ranks):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert ranks_here() == ranks


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no processor affinity on this system")
@pytest.mark.parametrize(
    ("cores", "bound", "ranks", "threads"), [(8, 8, 2, 4), (8, 1, 1, 1), (8, 3, 2, 3), (2, 2, 4, 1)]
)
def test_a_rank_takes_its_share_of_the_cores_and_no_more_than_it_is_bound_to(
    monkeypatch, cores, bound, ranks, threads
):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert threads_of_a_rank() == threads
