"""A disk that fills up or cannot be written to ends the run in one line, and costs nothing that was saved."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import pytest
from drill import AtStep, assert_same_course


@dataclass(frozen=True)
class LimitFiles:
    """From now on the system refuses this process what makes a file longer than so many bytes ("File too large")."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@pytest.mark.parametrize(
    ("size", "what"),
    [(100_000, "a checkpoint"), pytest.param(1_200, "metrics.jsonl", marks=pytest.mark.drill)],
)
def test_what_cannot_be_written_ends_all_ranks_with_one_line(launch, resume, straight, tmp_path, size, what):
    folder = tmp_path / "run"
    sabotage = {0: AtStep(4, LimitFiles(size))}
    ranks = launch(folder, sabotage=sabotage)
    assert ranks.wait(60) == [1, 1], ranks.told()
    assert max(ranks.ended.values()) - min(ranks.ended.values()) < 10
    assert len(ranks.told()) == 1, ranks.told()
    (line,) = ranks.told()
    assert line.startswith(f"error: cannot write to the run folder {folder}: File too large; mend that")
    whole = folder / "checkpoints" / "step-00000002"
    assert sorted(path.name for path in whole.parent.iterdir()) == ["latest", whole.name]
    resume(folder)
    assert_same_course(folder, straight)
