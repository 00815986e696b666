"""Runs over two nodes that have nothing in common but files and a cable: by torchrun, and by deepspeed over ssh."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drill import SETTINGS, assert_same_course, losses, status
from nodes import Cluster, Job, NoNodes

pytestmark = pytest.mark.drill
BIN = Path(sys.executable).parent
CARRIED = ("OMP_NUM_THREADS", "DIST_PRUNE_DATA", "TORCH_EXTENSIONS_DIR")
START = 180  # seconds that a busy machine may take to start a launcher and its ranks
RANK_TIMEOUT = 8
LONG = ("epochs=500",)  # not over before a request to stop arrives
SEEN = {"killed": "closed its connection: it has failed", "cut off": r"not answered for 8 s \(rank_timeout\): it hangs"}


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    try:
        made = Cluster(folder)
    except NoNodes as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


@pytest.fixture(scope="session")
def environment(data_home) -> dict[str, str]:
    """What every job is given. Ranks of a launcher around the tests are none of ours."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{BIN}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "DIST_PRUNE_DATA": str(data_home), "OMP_NUM_THREADS": "1"}


def program(folder: Path, *words: str, ds: str = "zero2", settings: tuple[str, ...] = ()) -> list[str]:
    run = ["launch/train.py", "--ds_config", f"ds_configs/{ds}.json", "--out", str(folder), *words]
    return [*run, "--set", *SETTINGS, f"rank_timeout={RANK_TIMEOUT}", *settings]


@pytest.fixture
def torchrun(cluster, environment, tmp_path) -> Callable[..., list[Job]]:
    """Start one rank on each node. ds: DeepSpeed config of each; extra: what the second node's environment has."""

    def start(
        folder: Path, *words: str, ds: tuple[str, str] = ("zero2", "zero2"), extra=None, settings=()
    ) -> list[Job]:
        jobs = []
        for number, node in enumerate(cluster.nodes):
            options = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}", "--master-addr=node-1"]
            command = [
                "torchrun",
                *options,
                "--master-port=29511",
                *program(folder, *words, ds=ds[number], settings=settings),
            ]
            log = tmp_path / f"{node.name}.log"
            jobs.append(node.start(command, log, environment | (extra or {} if number else {})))
        return jobs

    return start


def wait_for(condition: Callable[[], bool], job: Job, seconds: float = START) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.process.poll() is None, job.text()[-3000:]
        assert time.monotonic() < deadline, job.text()[-3000:]
        time.sleep(0.02)


def trained(folder: Path, steps: int) -> Callable[[], bool]:
    """Whether that many steps are on record."""
    path = folder / "metrics.jsonl"
    return lambda: path.exists() and path.read_text().count("\n") >= steps


def test_two_nodes_train_as_two_ranks_of_one_machine_do(torchrun, straight, tmp_path):
    folder = tmp_path / "run"
    for job in torchrun(folder):
        assert job.wait(START) == 0, job.text()[-3000:]
        assert job.errors() == []
    assert status(folder)["state"] == "done"
    assert json.loads((folder / "config.json").read_text())["world_size"] == 2
    assert losses(folder)[:6] == losses(straight)


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_lost_node_ends_the_other_with_one_line_and_the_run_goes_on_elsewhere(
    cluster, torchrun, resume, straight, tmp_path, how
):
    folder = tmp_path / "run"
    first, second = torchrun(folder)
    wait_for(trained(folder, 2), first)
    since = time.monotonic()
    if how == "killed":
        cluster.nodes[1].kill()
    else:
        cluster.cable(cluster.nodes[1], "down")
    wait_for(lambda: first.errors() != [], first, RANK_TIMEOUT + 20)
    told = time.monotonic() - since
    assert first.wait(30) == 1
    print(f"{how}: told after {told:.1f} s, ended after {time.monotonic() - since:.1f} s")
    (line,) = first.errors()
    assert re.match(rf"rank 1 \(process \d+ on node-2\) has {SEEN[how]}, or its node .*; continue with --resume$", line)
    if how == "cut off":  # that node is alive, and has lost the other
        assert second.wait(30) == 1
        (line,) = second.errors()
        assert line.startswith("rank 0 (process ")
    assert status(folder)["state"] == "failed"
    resume(folder)
    assert_same_course(folder, straight)


@pytest.fixture
def undisturbed(launch, tmp_path) -> Callable[[int], list[tuple[int, float]]]:
    """The losses of so many steps of an uninterrupted ``LONG`` run on two ranks of this machine."""

    def run(steps: int) -> list[tuple[int, float]]:
        folder = tmp_path / "undisturbed"
        ranks = launch(folder, "--max_steps", str(steps), settings=LONG)
        assert ranks.wait(START) == [3, 3], ranks.told()
        return losses(folder)

    return run


def test_sigterm_to_the_launcher_of_one_node_stops_and_saves_both_and_the_run_goes_on(torchrun, undisturbed, tmp_path):
    folder = tmp_path / "run"
    jobs = torchrun(folder, settings=LONG)
    wait_for(trained(folder, 2), jobs[0])
    since = time.monotonic()
    jobs[1].signal(signal.SIGTERM)
    wait_for(lambda: status(folder)["state"] == "stopped", jobs[0], 60)
    saved = time.monotonic() - since
    for job in jobs:
        assert job.wait(60) == 1, "torchrun returns 1 for what the ranks end with, 3"
        assert job.errors() == []
    print(f"torchrun: from signal to saved {saved:.1f} s, to exit {time.monotonic() - since:.1f} s")
    stopped = status(folder)
    assert (stopped["state"], stopped["reason"]) == ("stopped", "received SIGTERM"), "whichever rank received it"
    for job in torchrun(folder, "--resume", "--max_steps", "2", settings=LONG):
        assert job.wait(START) == 1
    assert losses(folder) == undisturbed(stopped["last_step"] + 2)


@pytest.fixture
def deepspeed(cluster, environment, tmp_path) -> Callable[..., Job]:
    """Start ``deepspeed --hostfile`` on the first node, which reaches both by ssh."""
    try:
        cluster.start_ssh()
    except NoNodes as reason:
        pytest.skip(str(reason))
    carried = tmp_path / "deepspeed_env"
    carried.write_text("".join(f"{name}={environment[name]}\n" for name in CARRIED if name in environment))

    def start(folder: Path, *words: str, hosts: tuple[str, ...] = ("node-1", "node-2")) -> Job:
        hostfile, log = tmp_path / "hostfile", tmp_path / "deepspeed.log"
        hostfile.write_text("".join(f"{host} slots=1\n" for host in hosts))
        command = ["deepspeed", "--hostfile", str(hostfile), *program(folder, *words, settings=LONG)]
        return cluster.nodes[0].start(command, log, environment | {"DS_ENV_FILE": str(carried)})

    return start


def test_deepspeed_over_ssh_trains_on_both_nodes_stops_on_sigterm_and_goes_on(
    cluster, deepspeed, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    job = deepspeed(folder)
    wait_for(trained(folder, 2), job)
    assert [node.count("launch/train.py --local_rank") for node in cluster.nodes] == [1, 1]
    since = time.monotonic()
    job.signal(signal.SIGTERM)
    assert job.wait(60) == 1, "the launcher does not pass on what the ranks end with, 3"
    while any(node.count("launch/train.py") for node in cluster.nodes):
        assert time.monotonic() - since < 60, job.text()[-3000:]
        time.sleep(0.1)
    print(f"deepspeed: from signal to exit of the ranks {time.monotonic() - since:.1f} s")
    stopped = status(folder)
    assert stopped["state"] == "stopped", job.text()[-3000:]
    assert job.errors() == []
    job = deepspeed(folder, "--resume", "--max_steps", "2")
    assert job.wait(START) == 3, job.text()[-3000:]
    assert losses(folder) == undisturbed(stopped["last_step"] + 2)


def test_a_host_that_cannot_be_reached_ends_deepspeed_with_a_line_that_names_it(deepspeed, tmp_path):
    job = deepspeed(tmp_path / "run", hosts=("node-1", "node-3"))
    assert job.wait(START) != 0
    assert "node-3: ssh: connect to host node-3 port 22: No route to host" in job.text()
    (line,) = job.errors()
    assert line.startswith("rank 0 cannot meet the others at 10.77.0.1:29500: ")
    assert not (tmp_path / "run").exists()


def test_a_node_with_another_ds_config_is_refused_before_anything_is_written(torchrun, tmp_path):
    folder = tmp_path / "run"
    jobs = torchrun(folder, ds=("zero2", "zero1"))
    for job in jobs:
        assert job.wait(START) == 1
    (told,) = [line for job in jobs for line in job.errors()]
    assert told.startswith("rank 1 (process ")
    assert " on node-2) has ds_config.zero_optimization.stage=1 where rank 0 has 2: " in told
    assert not folder.exists()


def test_a_node_with_another_package_is_refused_before_anything_is_written(torchrun, environment, tmp_path):
    folder, packages = tmp_path / "run", tmp_path / "packages"
    metadata = packages / "webdataset-0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: webdataset\nVersion: 0.1\n")
    before = environment.get("PYTHONPATH", "")
    jobs = torchrun(folder, extra={"PYTHONPATH": f"{packages}{os.pathsep}{before}"})
    for job in jobs:
        assert job.wait(START) == 1
    (told,) = [line for job in jobs for line in job.errors()]
    assert ' on node-2) has versions.webdataset="0.1" where rank 0 has "' in told
    assert not folder.exists()
