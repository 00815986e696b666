"""A run continues when the reader of its output is gone."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from dist_prune.runtime.launch import tolerate_broken_pipes
if sys.argv[1] == "tolerate":
    tolerate_broken_pipes()
sys.stdin.readline()  # wait until the reader is gone
for _ in range(3):
    print("step", flush=True)
    print("step", file=sys.stderr, flush=True)
sys.exit(3)
"""


def exit_code(word: str) -> int:
    """Return the exit code of a program that prints into pipes without a reader."""
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


def test_a_program_continues_without_the_readers_of_its_output():
    assert exit_code("tolerate") == 3
    assert exit_code("as it is") == 1, "the fault that the streams prevent"


def test_what_is_read_arrives():
    program = "from dist_prune.runtime.launch import tolerate_broken_pipes; tolerate_broken_pipes(); print('heard')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"heard\n"
