"""A run goes on when nobody reads any more what it tells."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from dist_prune.runtime.streams import outlive_readers
if sys.argv[1] == "outlive":
    outlive_readers()
sys.stdin.readline()  # until the reader is gone
for _ in range(3):
    print("step", flush=True)
    print("step", file=sys.stderr, flush=True)
sys.exit(3)
"""


def exit_code(word: str) -> int:
    """Of a program that prints into pipes which are closed at their other ends."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, word], stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    return process.wait(60)


def test_a_program_outlives_the_readers_of_its_output():
    assert exit_code("outlive") == 3
    assert exit_code("as it is") == 1, "this is what it is for"


def test_what_is_read_arrives():
    program = "from dist_prune.runtime.streams import outlive_readers; outlive_readers(); print('heard')"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"heard\n"
    )
