"""Commands that need no tensor load no torch."""

import json
import subprocess
import sys
from pathlib import Path

from data_tools import SOURCES
from dist_prune import __version__
from dist_prune.cli.shards import SOURCE_NAMES

ROOT = Path(__file__).resolve().parents[3]
TRAIN = ["train", "--ds_config", "ds_configs/zero2.json"]
# In one process: a command ends, what it has loaded stays, so one look at sys.modules speaks for all of them.
PROGRAM = """
import json, sys, time
begun = time.process_time()
from dist_prune.cli.main import main, train_main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["dist-prune", *words]
    try:
        train_main(words[1:]) if words[0] == "train" else main()
    except SystemExit as ended:
        codes.append(ended.code)
heavy = {"torch", "torchvision", "pandas", "matplotlib", "deepspeed", "tensorboard", "data_tools"} & set(sys.modules)
print(json.dumps([codes, sorted(heavy), time.process_time() - begun]))
"""


def run_all(*commands: list[str]):
    words = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done, *json.loads(done.stdout.splitlines()[-1])


def test_help_lists_and_typos_answer_within_a_second_and_load_no_torch():
    done, codes, heavy, seconds = run_all(
        ["--help"],
        ["--version"],
        ["recipes"],
        ["recipes", "digits"],
        ["recipees"],
        ["recipes", "digitz"],
        ["shards", "make", "--help"],
        ["export", "RUN", "--fold"],
        ["shards", "make", "digits", "--ot", "folder"],
        ["shards", "verify", "folder", "--worker", "2"],
        [*TRAIN, "--recipee", "digits"],
        [*TRAIN, "--recipe", "digitz"],
        [*TRAIN, "--set", "epoch=3"],
        [*TRAIN, "--set", "round_to=0"],
    )
    assert codes == [0, 0, 0, 0, 2, 2, 0] + [2] * 7
    assert heavy == []
    assert seconds < 1  # of processor time, all together: other processes may be running
    assert f"dist-prune {__version__}" in done.stdout
    assert "round_to=1\n    keep multiples of this many channels" in done.stdout
    assert len(done.stderr.splitlines()) == 9, done.stderr


def test_the_help_of_shards_make_names_every_source():
    assert tuple(SOURCES) == SOURCE_NAMES


def test_the_shard_tools_load_no_torch_before_they_write():
    code = "import data_tools, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr
