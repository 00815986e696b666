"""Ranks that do not hold the same, or were not started alike, end with one line that says what differs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from drill import AtStep, status

pytestmark = pytest.mark.drill


@dataclass(frozen=True)
class Disturb:
    """Changes one number of this rank's network, as a fault of its memory would."""

    kind: str

    def __call__(self) -> None:
        from dist_prune.engine.deepspeed_engine import Engine

        real = Engine.snapshot

        def snapshot(engine):
            live = engine.module.state_dict().items()
            next(tensor for name, tensor in live if name.endswith(self.kind)).view(-1)[0] += 1e-6
            return real(engine)

        Engine.snapshot = snapshot  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["gate.threshold", "gate.ste_window", "conv1.weight"])
def test_a_rank_whose_state_differs_by_one_number_ends_the_run_before_it_is_saved(launch, tmp_path, kind):
    folder = tmp_path / "run"
    ranks = launch(folder, sabotage={1: AtStep(3, Disturb(kind))})
    told = ranks.last_words(1, 1)
    assert told.startswith("error: at step 4, rank 1 and rank 0 differ in ")
    assert f"{kind}, so nothing was saved: continue with --resume" in told
    assert status(folder)["state"] == "failed"
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-00000002"]


@dataclass(frozen=True)
class OtherVersion:
    """This rank has another torch than the others, as on a node that was installed at another time."""

    def __call__(self) -> None:
        from dist_prune.training import run

        real = run.package_versions
        run.package_versions = lambda: {**real(), "torch": "1.0"}


def test_ranks_with_other_packages_or_another_recipe_are_refused_before_anything_is_written(launch, tmp_path):
    folder = tmp_path / "run"
    ranks = launch(folder, sabotage={1: OtherVersion()})
    told = ranks.last_words(2, 2)
    assert 'has versions.torch="1.0" where rank 0 has "' in told
    assert told.startswith("error: rank 1 (process ")
    assert not folder.exists()
