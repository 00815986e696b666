"""Two ranks with halves of a batch give the means, loss and gradients of one process with all of it."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest
import scenarios
import torch
from ranks import run_ranks

from dist_prune import distributed
from dist_prune.gates.means import MeanAccumulator
from dist_prune.gates.wrappers import gated_modules, gates_of

CASES = {"equal": [4, 4], "unequal": [3, 5]}


def steps_of_a_stage(stage: int) -> dict[str, dict]:
    results = {name: scenarios.one_step(stage, sizes) for name, sizes in CASES.items()}
    results["accumulated"] = scenarios.one_step(stage, CASES["unequal"], repeats=3)
    return results


@functools.cache
def one_process() -> dict:
    """What one process finds on the joined batch."""
    return scenarios.reference([scenarios.batch(8)])


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def steps(request):
    return run_ranks(2, steps_of_a_stage, request.param)


@pytest.mark.parametrize("case", ["equal", "unequal", "accumulated"])
def test_two_ranks_equal_one_process_on_the_joined_batch(steps, case):
    reference = one_process()
    means, gradients = reference["means"], reference["gradients"]
    assert ((means > 0) & (means < 1)).sum() >= 3, "gates must be undecided for this to say something"
    for rank in steps:
        result = rank[case]
        torch.testing.assert_close(result["means"], means, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(result["logits"], reference["logits"], rtol=1e-5, atol=1e-6)
        assert result["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert result["gradients"].keys() == gradients.keys()
        for name, gradient in gradients.items():
            scale = gradient.abs().max().item()
            difference = (result["gradients"][name] - gradient).abs().max().item()
            assert difference <= 1e-5 * max(scale, 1e-6), f"{name}: {difference} of {scale}"


def test_collectives_of_ours_are_one_a_micro_batch_and_one_a_step_of_few_bytes(steps):
    units = 6
    gates = 4 * (2 * units + 1 + 4)  # fp32: decisions and logits of all units, count, four control scalars
    scores = 4 * (2 + 3)  # loss, right answers, three loss terms
    for rank in steps:
        assert rank["equal"]["collectives"] == {"all_reduce": [gates, scores]}
        assert rank["accumulated"]["collectives"] == {"all_reduce": [gates] * 3 + [scores]}


def one_rank_far_behind(folder: Path) -> torch.Tensor:
    """Rank 1 begins its forward pass only when rank 0 has come to what lies behind its last gate."""
    model, reached = scenarios.undecided_phase().module, folder / "reached"
    *_, (_, last) = gated_modules(model)
    last.inner.conv1.register_forward_pre_hook(lambda *_: reached.touch())
    deadline = time.monotonic() + 60
    while distributed.rank() == 1 and not reached.exists():
        assert time.monotonic() < deadline, "rank 0 waits for this one in the middle of its forward pass"
        time.sleep(0.01)
    images, _ = scenarios.share(*scenarios.batch(8), [4, 4])
    accumulator = MeanAccumulator(gates_of(model))
    with accumulator.collect(4, torch.empty(0)):
        model.eval()(images)
    return accumulator.wait().values.detach()


def test_no_rank_waits_for_another_in_the_middle_of_a_forward_pass(tmp_path):
    means = one_process()["means"]
    for found in run_ranks(2, one_rank_far_behind, tmp_path):
        torch.testing.assert_close(found, means, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["equal", "unequal", "accumulated"])
def test_the_budget_moves_the_thresholds_alike_on_all_ranks_and_as_in_one_process(steps, case):
    expected = one_process()["thresholds"]
    assert expected.unique().numel() > 3, "thresholds must differ for this to say something"
    assert torch.equal(steps[0][case]["thresholds"], steps[1][case]["thresholds"])
    torch.testing.assert_close(steps[0][case]["thresholds"], expected, rtol=1e-5, atol=1e-5)


def test_gates_get_gradients_from_the_regularizers(steps):
    gradients = steps[0]["equal"]["gradients"]
    assert any(gradient.abs().max() > 1e-4 for name, gradient in gradients.items() if ".gate." in name)
