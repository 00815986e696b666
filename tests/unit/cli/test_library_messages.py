"""The terminal of our programs shows our own warnings and no others, unless the user asks for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LIBRARY = """
import logging, warnings
warnings.filterwarnings("always")  # as some libraries do when they are imported
logging.basicConfig(format="%(message)s")
log = logging.getLogger("DeepSpeed")
log.setLevel(logging.INFO)

def warn():
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.warn(f"a library's {category.__name__}", category, stacklevel=1)
    log.warning("a library's note")
    log.error("a library's error")
"""
PROGRAM = """
import os, sys, warnings
import dist_prune.cli.main as cli
from dist_prune.errors import DistPruneWarning

def command(arguments):
    import some_library
    some_library.warn()
    warnings.warn("this is slower", DistPruneWarning)
    sys.stderr.flush()
    if os.fork() == 0:  # as a worker that reads data is started
        some_library.warn()
        warnings.warn("a worker's trouble", DistPruneWarning)
        sys.stderr.flush()
        os._exit(0)
    os.wait()
    return 0

cli._command, cli.train = command, lambda words: not command(words)
sys.argv = ["dist-prune"]
cli.main() if {main} else cli.train_main([])
"""


@pytest.fixture
def stderr_of(tmp_path):
    """Run one of our programs, which uses a library that warns, and return the lines on its standard error."""
    (tmp_path / "some_library.py").write_text(LIBRARY)

    def run(main: bool, *options: str, **environment: str) -> list[str]:
        words = [sys.executable, *options, "-c", PROGRAM.format(main=main)]
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | environment
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path)])
        done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
        return done.stderr.splitlines()

    return run


@pytest.mark.parametrize("main", [True, False], ids=["dist-prune", "train"])
def test_only_our_warnings_and_errors_of_libraries_are_shown(stderr_of, main):
    assert stderr_of(main) == [
        "a library's error",
        "warning: this is slower",
        "a library's error",
        "warning: a worker's trouble",
    ]


@pytest.mark.parametrize("way", ["option", "variable"])
def test_users_can_have_the_warnings_of_libraries_back(stderr_of, way):
    lines = stderr_of(True, "-Wdefault") if way == "option" else stderr_of(True, PYTHONWARNINGS="default")
    text = "\n".join(lines)
    for expected in ("FutureWarning: a library's", "a library's note", "DistPruneWarning: this is slower"):
        assert expected in text
