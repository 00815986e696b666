"""A run continues when its output is closed, full, stalled, or left by its reader."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

PROGRAM = """
import sys
from dist_prune.runtime.streams import secure_streams
if sys.argv[1] == "tolerate":
    secure_streams()
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
    program = "from dist_prune.runtime.streams import secure_streams; secure_streams(); print('heard')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"heard\n"


CLOSED = """
import os, sys
from dist_prune.runtime.streams import secure_streams
secure_streams()
print("out"), print("error", file=sys.stderr)
sys.stdout.flush()
with open(os.environ["FOLDER"] + "/first", "w") as file:
    os.write(1, b"a library below Python")
    assert file.fileno() > 2
"""


@pytest.mark.parametrize("redirected", ["", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>/dev/full"])
def test_a_closed_or_full_output_ends_no_program_and_mixes_into_no_file(tmp_path, redirected):
    command = f'"$0" -c "$1" {redirected}'
    environment = {**os.environ, "FOLDER": str(tmp_path)}
    words = ["sh", "-c", command, sys.executable, CLOSED]
    assert subprocess.run(words, env=environment, capture_output=True, timeout=60, check=False).returncode == 0
    assert (tmp_path / "first").read_text() == ""


def test_the_output_of_a_command_on_a_full_disk_is_an_error_of_one_line():
    program = "import sys; from dist_prune.cli.main import main; main()"
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", program, "--version"]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (1, "error: the output is incomplete: No space left on device\n")


STALLED = """
import sys, time
from dist_prune.runtime.streams import secure_streams
secure_streams(patience=0.5)
for step in range(3000):
    print("step", step, "." * 100, flush=True)
print("trained", file=sys.stderr)
sys.stdin.readline()
print("heard again")
"""


def test_a_reader_that_stalls_holds_a_program_up_once_and_hears_it_again():
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", STALLED], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    limit = threading.Timer(30, process.kill)
    limit.start()
    try:
        assert process.stderr.readline() == "trained\n", "nobody has read 300 kB of output"
        early = os.read(process.stdout.fileno(), 1_000_000).decode()
        assert early.startswith("step 0 .")
        out, _ = process.communicate("go on\n")
        assert out.endswith("heard again\n")
        assert process.returncode == 0
    finally:
        limit.cancel()
        process.kill()
