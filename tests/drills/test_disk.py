"""A disk that fills up or cannot be written to ends the run in one line, and costs nothing that was saved."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import pytest
from drill import AtFinish, AtStep, assert_same_course, losses, status

pytestmark = pytest.mark.drill


@dataclass(frozen=True)
class LimitFiles:
    """From now on the system refuses this process what makes a file longer than so many bytes ("File too large")."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@pytest.mark.parametrize(("size", "what"), [(100_000, "a checkpoint"), (1_200, "metrics.jsonl")])
def test_what_cannot_be_written_ends_all_ranks_with_one_line(launch, resume, straight, tmp_path, size, what):
    folder = tmp_path / "run"
    sabotage = {0: AtStep(4, LimitFiles(size))}
    ranks = launch(folder, sabotage=sabotage)
    assert ranks.wait(60) == [1, 1], ranks.told()
    assert max(ranks.ended.values()) - min(ranks.ended.values()) < 10
    assert len(ranks.told()) == 1, ranks.told()
    (line,) = ranks.told()
    assert line.startswith(f"error: cannot write to the run folder {folder}: File too large; fix that")
    whole = folder / "checkpoints" / "step-00000002"
    assert sorted(path.name for path in whole.parent.iterdir()) == ["latest", whole.name]
    resume(folder)
    assert_same_course(folder, straight)


def test_a_disk_that_fills_up_as_the_sliced_network_is_written_costs_nothing(launch, tmp_path):
    """Room for a status and a mask, but not for the network."""
    settings = ("epochs=1", "checkpoint_every=20")
    assert launch(tmp_path / "straight", settings=settings).wait() == [0, 0]
    folder = tmp_path / "run"
    ranks = launch(folder, settings=settings, sabotage={0: AtFinish(LimitFiles(9_000))})
    assert ranks.wait() == [1, 1], ranks.told()
    (line,) = ranks.told()
    assert line.startswith(f"error: cannot write to the run folder {folder}: File too large; fix that")
    assert status(folder)["state"] == "failed"
    assert not (folder / "sliced").exists()
    assert not list(folder.glob(".*")), "what could not be written is gone"
    ranks = launch(folder, "--resume", settings=settings)
    assert ranks.wait() == [0, 0], ranks.told()
    assert status(folder) == {"state": "done", "reason": None, "last_step": 11, "resumed_from": 11}
    assert losses(folder) == losses(tmp_path / "straight")
    tensors = [path / "sliced" / "model.safetensors" for path in (folder, tmp_path / "straight")]
    assert tensors[0].read_bytes() == tensors[1].read_bytes()
