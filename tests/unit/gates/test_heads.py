"""The straight-through estimator: equations 4 and 5 of arXiv 2302.10798, to the letter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_prune.gates.heads import HEADS

STE = HEADS["ste"](1)
SMALLEST = 1e-45  # of fp32, above zero
BEYOND_ONE = 1.0000001


@pytest.mark.parametrize(
    ("x", "decision", "slope"),
    [
        (0.0, 0, 1),
        (-0.0, 0, 1),
        (SMALLEST, 1, 1),
        (-SMALLEST, 0, 1),
        (0.5, 1, 1),
        (1.0, 1, 1),
        (-1.0, 0, 1),
        (BEYOND_ONE, 1, 0),
        (-BEYOND_ONE, 0, 0),
        (100.0, 1, 0),
        (float("inf"), 1, 0),
        (float("-inf"), 0, 0),
    ],
)
def test_decides_by_the_sign_and_passes_the_gradient_up_to_one(x, decision, slope):
    logits = torch.tensor([x], requires_grad=True)
    decisions = STE(logits)
    decisions.backward(torch.tensor([-2.5]))
    assert decisions.item() == decision
    assert logits.grad.item() == -2.5 * slope


@settings(deadline=None)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20), st.sampled_from(["float32", "float64", "bfloat16"])
)
def test_keeps_shape_and_dtype_and_gives_zeros_and_ones(values, dtype):
    logits = torch.tensor(values, dtype=getattr(torch, dtype)).view(1, -1, 1).requires_grad_()
    decisions = STE(logits)
    upstream = torch.arange(1.0, len(values) + 1).view(1, -1, 1).to(logits.dtype)
    decisions.backward(upstream)
    assert (decisions.dtype, decisions.shape) == (logits.dtype, logits.shape)
    assert torch.equal(decisions, (logits > 0).to(logits.dtype))
    assert torch.equal(logits.grad, torch.where(logits.abs() <= 1, upstream, 0 * upstream))
