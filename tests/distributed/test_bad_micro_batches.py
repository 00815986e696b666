"""A loss that is not finite in one micro-batch of one rank: nothing changes anywhere, whatever DeepSpeed is asked."""

from __future__ import annotations

import pytest
import scenarios
import torch
from ranks import run_ranks

from dist_prune import distributed

CLIPPING = 0.01
CASES = {"plain": {}, "clipped": {"gradient_clipping": CLIPPING}}


def bad_then_good(stage: int, ds: dict) -> list:
    """Snapshots of a run of two micro-batches a step: its state after a bad step, a good, a bad and a good one.

    In a bad step, the loss of rank 1 is NaN in the first micro-batch.
    """
    from dist_prune.training.step import train_step

    phase = scenarios.undecided_phase()
    engine = scenarios.engine_for(phase, stage, micro=4, accumulation=2, ds=ds)
    real, poison = phase.task_loss, []
    phase.task_loss = lambda logits, labels: real(logits, labels) + (poison.pop() if poison else 0.0)
    parts = [scenarios.share(*scenarios.batch(8), [4, 4])] * 2
    found = [(True, engine.snapshot())]
    for bad in (True, False, True, False):
        poison += [float("nan")] * (bad and distributed.rank() == 1)
        applied = train_step(engine, phase, parts, epoch=0.0).applied
        found.append((applied, engine.snapshot()))
    engine.close()
    return found


def all_cases(stage: int) -> dict[str, list]:
    return {name: bad_then_good(stage, ds) for name, ds in CASES.items()}


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def runs(request):
    return run_ranks(2, all_cases, request.param)


def same(one, other) -> bool:
    """Compare tensors, or dictionaries of them, of any depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", CASES)
def test_the_step_changes_nothing_on_any_rank_and_the_next_one_does(runs, case):
    for rank in runs:
        applied, (start, *later) = [a for a, _ in rank[case]][1:], [s for _, s in rank[case]]
        assert applied == [False, True, False, True]
        after_bad, after_good, after_bad_again, end = later
        assert same(start.weights, after_bad.weights)
        assert after_bad.optimizer_state == {}
        assert not same(after_bad.weights, after_good.weights)
        assert same(after_good.weights, after_bad_again.weights)
        assert same(after_good.optimizer_state, after_bad_again.optimizer_state)
        assert not same(after_bad_again.weights, end.weights)
        assert all(tensor.isfinite().all() for tensor in end.weights.values())


def test_clipping_is_that_of_the_joint_norm_of_all_gradients(runs):
    """After the first step from rest the momentum is the gradient."""

    def norm(case: str) -> float:
        momentum = runs[0][case][2][1].optimizer_state
        return torch.stack([state["momentum_buffer"].norm() for state in momentum.values()]).norm().item()

    assert norm("plain") > 10 * CLIPPING
    assert norm("clipped") == pytest.approx(CLIPPING, rel=1e-3)


def scaled() -> list:
    return bad_then_good(0, {"torch_autocast": {"enabled": True, "dtype": "float16"}})


def test_without_zero_the_scaler_of_float16_refuses_the_step_by_itself():
    for rank in run_ranks(2, scaled):
        start, after_bad, after_good, *_ = [snapshot.weights for _, snapshot in rank]
        parameters = [name for name in start if "running" not in name and "num_batches" not in name]
        assert all(torch.equal(start[name], after_bad[name]) for name in parameters)
        assert any(not torch.equal(after_bad[name], after_good[name]) for name in parameters)
