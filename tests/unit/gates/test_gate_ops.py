"""The operations on feature maps equal the plain expressions that they stand for."""

import pytest
import torch
from torch.autograd import gradcheck
from unit_helpers import FORMATS, maps, same

from dist_prune.gates.consensus import collapse, masked
from dist_prune.gates.insertion import attach_gates
from dist_prune.gates.ops import add_gated, fan_out
from dist_prune.gates.wrappers import sites
from dist_prune.models.build import build_model
from dist_prune.pruning.mask import UnitMask

SHAPES = [(2, 3, 2, 2), (1, 1, 1, 1), (3, 5, 7, 3), (2, 4, 1, 5), (2, 600, 2, 3), (4, 16, 8, 8), (2, 8, 13, 11)]
SMALL = [(2, 3, 2, 2), (1, 1, 1, 1), (2, 2, 3, 5), (3, 1, 2, 3)]


def gates(shape, dtype=torch.float64):
    return torch.rand(shape[0], 1, dtype=dtype).requires_grad_()


def plain_add(kept, gate, branch, relu=False):
    total = kept + gate[:, :, None, None] * branch
    return total.relu() if relu else total


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fan_out_is_the_map_twice_and_its_mean_with_the_gradient_of_all_three(shape, layout):
    x = maps(shape, layout)
    upstream = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    upstream = [u.contiguous(memory_format=FORMATS[layout]) for u in upstream]
    upstream.append(torch.randn(shape[:2], dtype=torch.float64))
    first, second, pooled = fan_out(x)
    assert torch.equal(first, x)
    assert torch.equal(second, x)
    same(pooled, x.mean((2, 3)))
    (ours,) = torch.autograd.grad((first, second, pooled), x, upstream)
    (theirs,) = torch.autograd.grad((x * 1, x * 1, x.mean((2, 3))), x, upstream)
    same(ours, theirs)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("used", [[0], [1], [2], [0, 2], [1, 2], [0, 1]], ids=str)
def test_fan_out_has_the_right_gradient_when_not_all_outputs_are_used(used, layout):
    """A gate in front of a channel site has one user of its map."""
    x = maps((3, 5, 4, 4), layout)
    ours, theirs = (
        torch.autograd.grad(sum((n + 1) * outputs[n].square().sum() for n in used), x)[0]
        for outputs in (fan_out(x), (x, x, x.mean((2, 3))))
    )
    same(ours, theirs)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_fan_out_passes_torchs_check_of_gradients(shape, layout):
    assert gradcheck(fan_out, (maps(shape, layout),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 16, 8, 8), (2, 5, 3, 7), (1, 33, 1, 1)], ids=str)
@pytest.mark.parametrize("gates", ["open", "closed", "mixed"])
@pytest.mark.parametrize("relu", [False, True])
def test_compiled_kernels_equal_the_plain_expressions_in_float64(shape, dtype, gates, relu, compiled):
    """Sums in fp32, rounded once to the maps' dtype: a few units in the last place of the largest value."""
    x, kept, branch = (maps(shape, "channels_last", dtype) for _ in range(3))
    gate = {"open": torch.ones, "closed": torch.zeros, "mixed": torch.rand}[gates](shape[0], 1).requires_grad_()
    upstream = [torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(3)]
    upstream.append(torch.randn(shape[:2]))
    outs = (add_gated(kept, gate, branch, relu), *fan_out(x))
    ours = torch.autograd.grad(outs, (x, kept, gate, branch), upstream)
    wide = [t.detach().double().requires_grad_() for t in (x, kept, gate, branch)]
    plain = (plain_add(*wide[1:], relu), wide[0] * 1, wide[0] * 1, wide[0].mean((2, 3)))
    theirs = torch.autograd.grad(plain, wide, [u.double() for u in upstream])
    torch.testing.assert_close(outs[3].double(), plain[3], rtol=1e-6, atol=1e-6)
    unit = torch.finfo(dtype).eps
    for our, their in zip(ours, theirs, strict=True):
        assert (our.double() - their).abs().max() <= 4 * unit * max(1.0, their.abs().max().item())


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_compiled_kernels_give_the_same_network_fixed_to_a_mask(kind, compiled):
    """The decisions of a mask are one value spread over the batch, not B values in memory."""
    model = attach_gates(build_model("resnet14", num_classes=10), kind).eval()
    found = enumerate(sites(model))
    mask = UnitMask.of({s.name: range(1, s.units, 2) if n % 3 else range(s.units) for n, s in found}, sites(model))
    images = torch.randn(6, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(masked(model, mask)(images), collapse(model, mask)(images))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_add_gated_is_kept_plus_gate_times_branch_in_value_and_gradient(shape, layout, relu):
    inputs = maps(shape, layout), gates(shape), maps(shape, layout)
    upstream = torch.randn(shape, dtype=torch.float64)
    ours, theirs = add_gated(*inputs, relu), plain_add(*inputs, relu)
    same(ours, theirs)
    same(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), 1e-12)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_add_gated_passes_torchs_check_of_gradients(shape, layout):
    assert gradcheck(add_gated, (maps(shape, layout), gates(shape), maps(shape, layout)))


@pytest.mark.parametrize("branch_layout", FORMATS)
@pytest.mark.parametrize("kept_layout", FORMATS)
@pytest.mark.parametrize("grad_layout", FORMATS)
def test_mixed_layouts_change_nothing(kept_layout, branch_layout, grad_layout):
    shape = (3, 4, 5, 2)
    inputs = maps(shape, kept_layout), gates(shape), maps(shape, branch_layout)
    upstream = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=FORMATS[grad_layout])
    same(
        torch.autograd.grad(add_gated(*inputs), inputs, upstream),
        torch.autograd.grad(plain_add(*inputs), inputs, upstream),
    )


def test_a_closed_gate_leaves_the_shortcut_bit_for_bit_and_an_open_one_the_plain_sum():
    kept, branch = maps((2, 3, 5, 5), "NCHW", torch.float32), maps((2, 3, 5, 5), "NCHW", torch.float32)
    assert torch.equal(add_gated(kept, torch.zeros(2, 1), branch), kept)
    assert torch.equal(add_gated(kept, torch.ones(2, 1), branch), kept + branch)


@pytest.mark.parametrize("layout", FORMATS)
def test_bf16_maps_give_the_exact_result_within_rounding(layout):
    shape, rounding = (4, 16, 9, 9), 2**-8
    x = maps(shape, layout, torch.bfloat16)
    passed, _, pooled = fan_out(x)
    assert (passed.dtype, pooled.dtype) == (torch.bfloat16, torch.float32)
    exact = x.detach().double().mean((2, 3))
    # A sum of 81 numbers of size 1, rounded once.
    assert (pooled - exact).abs().max() <= rounding * exact.abs().max() + 1e-6

    kept, branch = maps(shape, layout, torch.bfloat16), maps(shape, layout, torch.bfloat16)
    gate = gates(shape, torch.float32)
    out = add_gated(kept, gate, branch)
    assert out.dtype == torch.bfloat16
    wide = [t.detach().double().requires_grad_() for t in (kept, gate, branch)]
    exact_out = plain_add(*wide)
    torch.testing.assert_close(out.double(), exact_out, rtol=2 * rounding, atol=2 * rounding)
    upstream = torch.randn(shape).bfloat16()
    ours = torch.autograd.grad(out, (kept, gate, branch), upstream)
    theirs = torch.autograd.grad(exact_out, wide, upstream.double())
    assert [g.dtype for g in ours] == [torch.bfloat16, torch.float32, torch.bfloat16]
    for our, their in zip(ours, theirs, strict=True):
        assert (our.double() - their).abs().max() <= 4 * rounding * their.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", FORMATS)
def test_the_mean_of_a_large_map_does_not_overflow_half_precision(layout, dtype):
    """56 x 56 pixels of 30 add up to 94080, beyond the largest fp16 number."""
    x = torch.full((2, 4, 56, 56), 30.0, dtype=dtype).contiguous(memory_format=FORMATS[layout])
    torch.testing.assert_close(fan_out(x)[2], torch.full((2, 4), 30.0), rtol=2**-7, atol=0)


@pytest.mark.parametrize("by", ["torch", "kernels"])
def test_second_derivatives_are_right_or_refused(by, request):
    """A silently wrong one would spoil gradient penalties and Hessian-vector products."""
    shape, dtype = (2, 2, 2, 2), torch.float64
    if by == "kernels":
        request.getfixturevalue("compiled")
        dtype = torch.float32
    layout = "channels_last"
    inputs = maps(shape, layout, dtype), gates(shape, dtype), maps(shape, layout, dtype)

    def second(function):
        first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
        for leaf in inputs:
            leaf.grad = None
        sum(g.square().sum() for g in first).backward()
        return [leaf.grad for leaf in inputs]

    theirs = second(plain_add)
    try:
        ours = second(add_gated)
    except RuntimeError as refusal:
        assert "once_differentiable" in str(refusal)  # noqa: PT017
    else:
        same(ours, theirs, 1e-10)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_take_gradients_of_any_layout_and_from_any_users(layout, dtype, compiled):
    shape = (3, 5, 4, 4)
    x, kept, branch = (maps(shape, "channels_last", dtype) for _ in range(3))
    gate = torch.rand(3, 1).requires_grad_()
    upstream = torch.randn(shape).to(dtype).contiguous(memory_format=FORMATS[layout])
    pooled = torch.randn(3, 5)
    near = {"rtol": 2e-2, "atol": 5e-2} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for used in ([0], [1], [2], [0, 2], [1, 2], [0, 1], [0, 1, 2]):
        ours, theirs = (
            torch.autograd.grad([outs[n] for n in used], x, [(upstream, upstream, pooled)[n] for n in used])[0]
            for outs in (fan_out(x), (x * 1, x * 1, x.float().mean((2, 3))))
        )
        torch.testing.assert_close(ours, theirs, **near)
    ours, theirs = (
        torch.autograd.grad(function(kept, gate, branch), (kept, gate, branch), upstream)
        for function in (add_gated, lambda k, g, b: plain_add(k, g.to(dtype), b))
    )
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, **near)
