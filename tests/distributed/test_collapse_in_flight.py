"""Collapse in flight: what is decided is sliced away while training continues, and the losses stay what they were."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import scenarios
import torch
from commands import records
from ranks import run_ranks

from dist_prune import distributed
from dist_prune.gates.consensus import slice_gated_network
from dist_prune.gates.freezer import Freezer
from dist_prune.gates.wrappers import sites
from dist_prune.methods import Phase, Transition

STEPS = 10
OPENED = torch.tensor([1.0, 0, 0, 1, 1, 0])  # of the six layers of a ResNet-14


def losses_of(engine: Any, phase: Phase, steps: int = STEPS) -> list[float]:
    """Of some steps in train mode on changing batches."""
    from dist_prune.training.step import train_step

    engine.module.train()
    size, losses = 8 // distributed.world_size(), []
    images, labels = scenarios.batch(8 * 5)
    for step in range(steps):
        part = slice(8 * (step % 5), 8 * (step % 5) + 8)
        mine = scenarios.share(images[part], labels[part], [size] * distributed.world_size())
        losses.append(train_step(engine, phase, [mine], epoch=0.0).losses["task"])
    return losses


def with_and_without_collapse(stage: int) -> tuple[list[float], list[float], int]:
    """Some steps with gates; then, from one state, steps with fixed gates and steps of the collapsed network."""
    from dist_prune.training.phase_trainer import inherit

    gated = scenarios.undecided_phase()
    micro = 8 // distributed.world_size()
    engine = scenarios.engine_for(gated, stage, micro=micro)
    losses_of(engine, gated, steps=5)
    Freezer(engine.module, patience=1).update(engine.module, OPENED)
    before = engine.snapshot()
    fixed = losses_of(engine, Silent("gated", engine.module, 4))
    engine.close()

    plain = scenarios.undecided_phase().module
    kept = {site.name: [0] * int(opened) for site, opened in zip(sites(plain), OPENED, strict=True)}
    small, origins = slice_gated_network(plain, kept)
    phase = Phase("collapsed", small, 4, transition=Transition(origins))
    start = inherit(phase, before)
    small.load_state_dict(start.weights)
    engine = scenarios.engine_for(phase, stage, micro=micro)
    engine.restore_optimizer(start.optimizer_state, scenarios.batch(micro)[0])
    engine.set_lr(scenarios.CONFIG.lr)  # the priming step has none
    collapsed = losses_of(engine, phase)
    engine.close()
    return fixed, collapsed, len(start.optimizer_state)


class Silent(Phase):
    """A gated phase without loss terms, so that gates that are fixed have no part in the loss."""

    has_gates = True


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_losses_after_a_collapse_are_those_of_the_network_with_its_gates_fixed(stage):
    for fixed, collapsed, inherited in run_ranks(2, with_and_without_collapse, stage):
        assert inherited > 20, "the momentum comes along"
        relative = [abs(a - b) / abs(a) for a, b in zip(fixed, collapsed, strict=True)]
        assert relative[0] <= 1e-5
        assert max(relative) <= 1e-3
        assert len({round(loss, 3) for loss in fixed}) == STEPS, "the network learns meanwhile"


def run_digits(folder: str, stage: int, settings: list[str], *invocations: dict[str, Any]) -> list[bool]:
    from dist_prune.config import override
    from dist_prune.recipes import recipe
    from dist_prune.training.run import Options, run

    quick = ["epochs=5", "model=resnet8", "log_every=1", "workers=0", "freeze.after=3", "mask_samples=128", *settings]
    config = override(recipe("digits"), quick)
    return [run(config, Options(f"ds_configs/zero{stage}.json", out=folder, **words)) for words in invocations]


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_a_run_collapses_when_all_is_decided_and_trains_the_small_network_to_the_end(kind, tmp_path, data_folder):
    assert run_ranks(2, run_digits, str(tmp_path), 2, [f"gates.kind={kind}"], {}) == [[True], [True]]
    evals, (summary,) = records(tmp_path, "eval"), records(tmp_path, "summary")
    phases = [record["phase"] for record in evals]
    assert phases == ["gated"] * 3 + ["collapsed"] * 2, "units leave until the end of the second epoch"
    assert [record["epoch"] for record in evals] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in records(tmp_path, "train")] == list(range(1, 56))
    rates = [record["optimizer/lr"] for record in records(tmp_path, "train")]
    straight = [b / a for a, b in itertools.pairwise(rates[30:])]
    assert max(straight) < 1, "the learning rate keeps falling through the collapse"
    assert {record["macs_ratio"] for record in evals[2:]} == {summary["macs_ratio"]}
    assert summary["accuracy"] == summary["accuracy_consensus"] == summary["accuracy_sliced"] > 0.5
    assert summary["agreement"] == 1
    assert summary["max_abs_difference"] <= 1e-5


def test_a_run_goes_on_from_either_side_of_its_collapse(tmp_path, data_folder):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run_ranks(1, run_digits, str(straight), 2, [], {})
    run_ranks(1, run_digits, str(stopped), 2, [], {"max_steps": 30}, {"max_steps": 8, "resume": True})
    assert records(stopped, "eval")[-1]["phase"] == "gated"
    (done,) = run_ranks(1, run_digits, str(stopped), 2, [], {"max_steps": 4, "resume": True}, {"resume": True})
    assert done == [False, True]
    losses = [[r["loss/total"] for r in records(folder, "train")] for folder in (straight, stopped)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert records(stopped, "eval")[-1]["phase"] == "collapsed"


def test_without_the_collapse_gates_stay_to_the_end(tmp_path, data_folder):
    run_ranks(1, run_digits, str(tmp_path), 2, ["freeze.collapse=false"], {})
    assert {record["phase"] for record in records(tmp_path, "eval")} == {"gated"}
    assert records(tmp_path, "summary")[0]["agreement"] == 1


def test_a_recipe_may_name_the_epoch_of_the_collapse(tmp_path, data_folder):
    settings = ["freeze.collapse_epoch=4", "freeze.after=0"]
    run_ranks(1, run_digits, str(tmp_path), 2, settings, {})
    assert [r["phase"] for r in records(tmp_path, "eval")] == ["gated"] * 4 + ["collapsed"]
