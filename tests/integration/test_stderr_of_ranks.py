"""Two ranks at ZeRO 2, where torch and DeepSpeed warn of each other: standard error holds our lines only."""

import os
import subprocess
import sys

from commands import ROOT
from ranks import free_port


def test_standard_error_of_two_ranks_at_zero_2_holds_our_lines_only(data_home, tmp_path):
    words = [sys.executable, "launch/train.py", "--ds_config", "ds_configs/zero2.json", "--max_steps", "2"]
    words += ["--out", str(tmp_path / "run"), "--set", "model=resnet8", "log_every=1"]
    shared = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    shared |= {"DIST_PRUNE_DATA": str(data_home), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            words, cwd=ROOT, env=shared | {"RANK": rank, "LOCAL_RANK": rank}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [3, 3], errors
    foreign = [line for line in errors[0].splitlines() if line and not line.startswith("step ")]
    assert foreign == []
    assert errors[1] == ""
