"""A method of two phases fits behind the seam without a change to the loop: train dense, cut at random, train on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import records
from ranks import run_ranks
from torch import Tensor

import dist_prune
from dist_prune import attach_gates, distributed
from dist_prune.methods import METHODS, Method, Phase, Phases, Step, Transition
from dist_prune.pruning.residual import residual_blocks
from dist_prune.pruning.slicing import TensorSlice, slice_network
from dist_prune.recipes import recipe


class RandomCut(Method):
    """Train dense, remove half of the blocks at random, train on with weights and momentum that stay."""

    @property
    def epochs(self) -> int:
        return 2 * self.task.config.epochs

    def phases(self) -> Phases:
        dense = yield Phase("dense", self.task.build(), self.task.config.epochs)
        kept = self._random_half(dense.module)
        small, origins = slice_network(dense.module, kept)
        yield Phase("cut", small, self.task.config.epochs, kept, Transition(origins))

    def _random_half(self, module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        names = list(residual_blocks(module))
        chosen = random.Random(4).sample(names, len(names) // 2)
        return {name: (0,) if name in chosen else () for name in names}


def run_random_cut(folder: str, stage: int, *invocations: dict[str, Any]) -> list[bool]:
    from dist_prune.config import override
    from dist_prune.training import phase_trainer as phase_run
    from dist_prune.training.run import Options, run

    METHODS["random_cut"] = RandomCut
    settings = ["method=random_cut", "epochs=1", "model=resnet14", "log_every=1", "workers=0"]
    starts = []
    remember_starts(phase_run, starts)
    config = override(recipe("digits"), settings)
    done = [run(config, Options(f"ds_configs/zero{stage}.json", out=folder, **words)) for words in invocations]
    if distributed.is_main():
        torch.save(starts, Path(folder) / "starts.pt")
    return done


def remember_starts(phase_run: Any, starts: list[Any]) -> None:
    """Note, at the beginning of each phase, what it is given and what its engine then holds."""

    class Watched(phase_run.PhaseTrainer):
        def __init__(self, context: Any, phase: Phase, start: Any) -> None:
            super().__init__(context, phase, start)
            held = self.engine.snapshot()
            starts.append((phase.name, start.weights, start.optimizer_state, held.weights, held.optimizer_state))

    from dist_prune.training import loop as trainer

    trainer.PhaseTrainer = Watched


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_second_phase_inherits_weights_and_momentum_and_half_of_the_network(
    stage, tmp_path, monkeypatch, data_folder
):
    assert run_ranks(2, run_random_cut, str(tmp_path), stage, {}) == [[True], [True]]
    evals, (summary,) = records(tmp_path, "eval"), records(tmp_path, "summary")
    assert [r["phase"] for r in evals] == ["dense", "cut"]
    assert [r["step"] for r in records(tmp_path, "train")] == list(range(1, 23))
    small = dist_prune.load_sliced(tmp_path / "sliced")
    assert len(residual_blocks(small)) == 3
    assert summary["macs_ratio"] == evals[1]["macs_ratio"] < 0.6 < evals[0]["macs_ratio"] == 1.0

    (_, none, _, _, no_momentum), (name, weights, momentum, held, held_momentum) = torch.load(tmp_path / "starts.pt")
    assert (name, none, no_momentum) == ("cut", {}, {})
    assert set(weights) == set(small.state_dict())
    assert set(momentum) == {name for name, _ in small.named_parameters()}
    for tensors, found in ((weights, held), (momentum, held_momentum)):
        torch.testing.assert_close(found, tensors, rtol=1e-6, atol=1e-8)


def test_a_run_resumes_within_its_second_phase(tmp_path, data_folder):
    invocations = ({"max_steps": 15}, {"resume": True})
    assert run_ranks(1, run_random_cut, str(tmp_path / "stopped"), 2, *invocations) == [[False, True]]
    assert run_ranks(1, run_random_cut, str(tmp_path / "straight"), 2, {}) == [[True]]
    stopped, straight = (
        [record["loss/total"] for record in records(tmp_path / name, "train")] for name in ("stopped", "straight")
    )
    assert stopped == pytest.approx(straight, rel=1e-5)


class Twice(Method):
    """Two phases of one name, which a resume could not tell apart."""

    def phases(self) -> Phases:
        yield Phase("dense", self.task.build(), 1)
        yield Phase("dense", self.task.build(), 1)


def run_twice(folder: str) -> str:
    from dist_prune.config import override
    from dist_prune.training.run import Options, run

    METHODS["twice"] = Twice
    config = override(recipe("digits"), ["method=twice", "epochs=1", "model=resnet8", "workers=0"])
    with pytest.raises(dist_prune.UserError) as refused:
        run(config, Options("ds_configs/zero0.json", out=folder))
    return str(refused.value)


def test_two_phases_of_one_name_are_refused_by_name(tmp_path, data_folder):
    """Stopped in the second one and resumed, a run would train the first one's epochs once more."""
    (said,) = run_ranks(1, run_twice, str(tmp_path))
    assert said == "the method has two phases called 'dense': give each phase a name of its own"


class Nothing(Method):
    def phases(self) -> Phases:
        yield from ()


class GatesOfAnother(Method):
    """Gates in a phase that says it has none."""

    def phases(self) -> Phases:
        yield Phase("plain", attach_gates(self.task.build()), 1)


class WrongOrigin(Method):
    def phases(self) -> Phases:
        module = self.task.build()
        yield Phase("first", module, 1)
        yield Phase("second", module, 1, transition=Transition({"fc.bias": TensorSlice("fc.bais")}))


class Renamed(Method):
    """A loss term by a name that is taken."""

    def phases(self) -> Phases:
        yield RenamedPhase("only", self.task.build(), 1)


class RenamedPhase(Phase):
    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        return {"task": step.logits.mean()}


MISTAKES = {
    Nothing: "method 'own' yields no phase",
    GatesOfAnother: "phase 'plain' has has_gates=False, its module has 3 gates",
    WrongOrigin: "the transition to phase 'second' takes 'fc.bias' from 'fc.bais', which the previous phase does not "
    "have; did you mean 'fc.bias'?",
    Renamed: "loss term 'task': terms are scalars, and 'task' and 'total' are names of the loss itself",
}


def run_mistakes(folder: str) -> list[str]:
    from dist_prune.config import override
    from dist_prune.training.run import Options, run

    config = override(recipe("digits"), ["method=own", "epochs=1", "model=resnet8", "workers=0"])
    said = []
    for number, method in enumerate(MISTAKES):
        METHODS["own"] = method
        with pytest.raises(dist_prune.UserError) as refused:
            run(config, Options("ds_configs/zero0.json", out=f"{folder}/{number}"))
        said.append(str(refused.value))
    return said


def test_mistakes_of_a_method_are_told_in_one_line(tmp_path, data_folder):
    assert run_ranks(1, run_mistakes, str(tmp_path)) == [list(MISTAKES.values())]
