"""compile=true: the compiled step has the losses of the other one, on several ranks and at ZeRO 0 to 2."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios
from ranks import run_ranks
from torch._dynamo.utils import counters

from dist_prune import UserError, distributed

STEPS = 8


def both(stage: int, backend: str) -> dict[str, Any]:
    """Losses and weights after some steps from one state, compiled and not; how many graphs there were."""
    found: dict[str, Any] = {}
    for compiled in (False, True):
        phase = scenarios.undecided_phase()
        engine = scenarios.engine_for(phase, stage, micro=8 // distributed.world_size())
        if compiled:
            counters.clear()
            engine.compile(backend)
        losses = _losses(engine, phase)
        found[str(compiled)] = losses, engine.snapshot().weights
        if compiled:
            found["graphs"] = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        engine.close()
    return found


def _losses(engine: Any, phase: Any) -> list[float]:
    from dist_prune.training.step import train_step

    engine.module.train()
    size = 8 // distributed.world_size()
    images, labels = scenarios.batch(8 * STEPS)
    losses = []
    for step in range(STEPS):
        part = slice(8 * step, 8 * step + 8)
        mine = scenarios.share(images[part], labels[part], [size] * distributed.world_size())
        losses.append(train_step(engine, phase, [mine], epoch=0.0, number=step).losses["total"])
    return losses


def _compare(results: list[dict[str, Any]]) -> None:
    for result in results:
        (plain, weights), (compiled, compiled_weights) = result["False"], result["True"]
        assert len({round(loss, 3) for loss in plain}) == STEPS, "the network learns meanwhile"
        assert compiled == pytest.approx(plain, rel=1e-4)
        assert compiled_weights.keys() == weights.keys()
        assert result["graphs"] == (1, 0)


# The backend that traces the backward pass as well; at the other stages the graph alone, in make drills.
_OTHERS = [pytest.param(stage, "eager", marks=pytest.mark.drill) for stage in (0, 1)]


@pytest.mark.parametrize(("stage", "backend"), [(2, "aot_eager"), *_OTHERS])
def test_losses_are_those_of_the_step_that_is_not_compiled(stage, backend):
    _compare(run_ranks(2, both, stage, backend, seconds=280))


@pytest.mark.drill  # Inductor's C++ compiler takes half a minute of both cores; aot_eager is the quick counterpart.
def test_the_same_with_the_compiler_that_runs_use():
    _compare(run_ranks(1, both, 2, "inductor", seconds=290))


def test_zero_3_is_refused_with_why():
    from dist_prune.engine.deepspeed_engine import check_with_deepspeed

    check_with_deepspeed({"zero_optimization": {"stage": 2}}, compiled=True)
    check_with_deepspeed({"zero_optimization": {"stage": 3}})
    with pytest.raises(UserError, match="compile=true needs ZeRO 0, 1 or 2"):
        check_with_deepspeed({"zero_optimization": {"stage": 3}}, compiled=True)
