"""The environment of a rank under a launcher, in an ssh session, or without either."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from dist_prune.runtime.environment import prepare_environment, threads_per_rank
from dist_prune.runtime.launch import ranks_per_node


@pytest.fixture
def prepared(monkeypatch):
    """Prepare the environment of a python in ``prefix``, return one variable, and restore everything at the end."""

    def prepare(variable: str, prefix: str = sys.prefix, **given: str) -> str:
        with monkeypatch.context() as patch, warnings.catch_warnings():
            patch.setattr(os, "environ", {"HOME": "/home/user", **given})
            patch.setattr(sys, "prefix", prefix)
            prepare_environment()
            return os.environ[variable]

    return prepare


def test_operations_are_compiled_by_the_ninja_of_this_python_also_where_the_environment_is_not_active(prepared):
    path = prepared("PATH", PATH="/usr/local/bin:/usr/bin:/bin")
    assert Path(shutil.which("ninja", path=path)).parent == Path(sys.executable).parent
    assert path.endswith(":/usr/local/bin:/usr/bin:/bin")


def test_environments_compile_into_folders_of_their_own_unless_the_user_names_one(prepared):
    def folder(prefix: str, **given: str) -> str:
        return prepared("TORCH_EXTENSIONS_DIR", prefix, **given)

    assert folder("/here") == folder("/here") != folder("/there")
    assert folder("/here", XDG_CACHE_HOME="/cache").startswith("/cache/torch_extensions/")
    assert folder("/here", TORCH_EXTENSIONS_DIR="/mine") == "/mine"


PROGRAM = """
import importlib.abc, os, sys

found = []

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "deepspeed":
            found.append(os.environ.get("TORCH_EXTENSIONS_DIR"))

sys.meta_path.insert(0, Watch())
import torch
from dist_prune.engine import deepspeed_engine
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer

deepspeed_engine.start_process_group()
is_zero_supported_optimizer(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
print(found)
print(deepspeed_engine.deepspeed.comm.comm.cdb.shm_comm_op)
print(compiler.compile.__name__, [n for n in sys.modules if n == "torch._inductor.compile_fx"])
"""


def test_the_environment_is_prepared_before_deepspeed_is_imported_and_nothing_loads_the_compiler():
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_EXTENSIONS_DIR"}
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    prepared, shared_memory, compiler = done.stdout.splitlines()
    assert "torch_extensions" in prepared
    assert shared_memory == "None", "DeepSpeed would compile it, and leave 69 MB in /dev/shm for each rank"
    assert compiler == "compile []"


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
    assert ranks_per_node() == ranks


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no processor affinity on this system")
@pytest.mark.parametrize(
    ("cores", "bound", "ranks", "threads"), [(8, 8, 2, 4), (8, 1, 1, 1), (8, 3, 2, 3), (2, 2, 4, 1)]
)
def test_a_rank_takes_its_share_of_the_cores_and_no_more_than_it_is_bound_to(monkeypatch, cores, bound, ranks, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)))
    monkeypatch.setattr("dist_prune.runtime.environment.joblib.cpu_count", lambda: min(cores, bound))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert threads_per_rank() == threads


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no processor affinity on this system")
@pytest.mark.parametrize(("quota", "ranks", "threads"), [(4, 1, 4), (4, 2, 2), (1, 2, 1), (64, 1, 64), (80, 2, 32)])
def test_the_ranks_of_a_container_share_the_cores_that_it_is_granted(monkeypatch, quota, ranks, threads):
    """A pod with a limit of 4 cores sees all 64 of its node."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr("joblib.externals.loky.backend.context._cpu_count_cgroup", lambda _: quota)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert threads_per_rank() == threads
