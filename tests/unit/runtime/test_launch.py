"""The environment that launchers leave, completed for torch and DeepSpeed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dist_prune import distributed
from dist_prune.errors import UserError
from dist_prune.runtime import launch
from dist_prune.runtime.launch import complete_environment

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = (
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NTASKS",
    "SLURM_JOB_ID",
    "SLURM_LAUNCH_NODE_IPADDR",
    "SLURM_STEP_NUM_NODES",
)


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES + SLURM:
        monkeypatch.delenv(name, raising=False)

    def complete(**given):
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        # A copy, so that what is filled in does not outlast the test.
        monkeypatch.setattr("os.environ", dict(os.environ))
        complete_environment()
        return {name: os.environ[name] for name in NAMES}

    return complete


def test_without_a_launcher_there_is_one_rank(environment):
    seen = environment()
    assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == ("0", "0", "1")
    assert seen["MASTER_ADDR"] == "127.0.0.1"
    assert seen["MASTER_PORT"] == "10000"


def test_a_bare_srun_is_read_from_slurms_variables(environment):
    given = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}
    seen = environment(**given, SLURM_JOB_ID="123456", SLURM_LAUNCH_NODE_IPADDR="10.0.0.7")
    assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == ("5", "1", "8")
    assert seen["MASTER_ADDR"] == "10.0.0.7"
    assert seen["MASTER_PORT"] == "13456", "the same on all ranks"


@pytest.mark.parametrize(("nodes", "address"), [("1", "127.0.0.1"), ("2", "10.0.0.7")])
def test_ranks_of_one_node_meet_where_other_machines_cannot(environment, nodes, address):
    given = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    assert environment(**given, SLURM_STEP_NUM_NODES=nodes)["MASTER_ADDR"] == address


@pytest.mark.parametrize(("address", "listens_at"), [("127.0.0.1", "0100007F"), ("localhost", "0100007F"), (None, "0")])
def test_the_store_of_rank_0_listens_on_loopback_if_the_ranks_meet_there(monkeypatch, address, listens_at):
    """A name is not enough: on many systems a machine's own name stands for a loopback address."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": address or socket.gethostname(), "MASTER_PORT": str(port)}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    store = distributed._connect(5)
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    (place,) = [line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    assert place.startswith(listens_at)
    del store


def test_torchrun_inside_srun_wins(environment):
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}
    torchrun = {"RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    assert environment(**slurm, **torchrun) == torchrun


def test_a_launcher_that_sets_ranks_is_not_mixed_with_slurms_variables(environment):
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "3", "SLURM_NTASKS": "8"}
    seen = environment(**slurm, RANK="0")
    assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == ("0", "0", "1")


def test_an_sbatch_script_without_a_step_is_one_process(environment):
    seen = environment(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NTASKS="8")
    assert seen["WORLD_SIZE"] == "1"


@pytest.mark.parametrize("job", [1, 19_999, 20_000, 123_456, 4_294_967_295])
def test_the_sbatch_script_and_a_bare_srun_use_the_same_port_below_those_of_outgoing_connections(environment, job):
    script = Path(__file__).resolve().parents[3] / "launch" / "slurm" / "train.sbatch"
    (line,) = [line for line in script.read_text().splitlines() if line.startswith("port=")]
    shell = subprocess.run(
        ["bash", "-c", f"{line}; echo $port"], env={"SLURM_JOB_ID": str(job)}, capture_output=True, check=True
    )
    seen = environment(SLURM_STEP_ID="0", SLURM_NTASKS="2", SLURM_JOB_ID=str(job))
    assert seen["MASTER_PORT"] == shell.stdout.decode().strip()
    assert 1024 < int(seen["MASTER_PORT"]) < 32768


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK=5, which is no number from 0 to 1:"),
        ({"RANK": "1"}, "RANK=1, which is no number from 0 to 0:"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1, which is no number from 0 to 1:"),
        ({"RANK": "zero"}, "RANK=zero, which"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0, which"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=, which"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x, which"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000, which is no number from 1 to 65535:"),
        ({"DS_ACCELERATOR": "gpu"}, "DS_ACCELERATOR=gpu;"),
    ],
)
def test_a_value_that_no_launcher_sets_is_refused(environment, given, told):
    with pytest.raises(UserError, match=told):
        environment(**given)


@pytest.mark.parametrize("given", [{"RANK": "5", "WORLD_SIZE": "2"}, {"RANK": "1"}, {"WORLD_SIZE": "two"}])
def test_an_impossible_environment_ends_the_program_at_once_with_one_line(tmp_path, given):
    command = [sys.executable, str(ROOT / "launch/train.py"), "--ds_config", str(ROOT / "ds_configs/zero2.json")]
    environment = {**os.environ, **given}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: the environment has {next(iter(given))}=")


def test_a_rank_that_a_shell_has_left_does_not_silence_the_command():
    command = [sys.executable, "-c", "from dist_prune.cli.main import main; main()", "evaluat"]
    environment = {**os.environ, "RANK": "3", "WORLD_SIZE": "4"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr[:22]) == (2, "error: unknown command")


def test_an_address_that_nobody_knows_is_one_line_after_the_limit(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "nobody.invalid")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(distributed.NotMet, match=r"rank 0 cannot meet the others: nobody\.invalid: "):
        distributed.meet("", seconds=0.1)


@pytest.mark.parametrize("option", ["--hostfile {}", "-H {}", "--hostfile={}"])
def test_a_hostfile_that_deepspeed_was_given_and_did_not_find_ends_the_run(option, tmp_path, monkeypatch):
    hosts, ranks_parent, above = tmp_path / "hosts", os.getppid(), 42
    commands = {
        ranks_parent: f"python -m {launch._DEEPSPEED} --world_info=x launch/train.py",
        above: f"python bin/deepspeed {option.format(hosts)} launch/train.py",
    }
    stat = f"{ranks_parent} (python (a b)) S {above} 1"
    monkeypatch.setattr(launch, "_read", lambda pid, name: commands.get(pid, "") if name == "cmdline" else stat)
    with pytest.raises(UserError, match=f"hostfile {hosts} not found, so deepspeed would train on this machine alone"):
        launch.refuse_missing_hostfile()
    hosts.write_text("node-1 slots=4")
    launch.refuse_missing_hostfile()
    hosts.unlink()
    commands[ranks_parent] = "bash"
    launch.refuse_missing_hostfile()
