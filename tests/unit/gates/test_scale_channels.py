"""Gating channel by channel equals the plain product, in value and gradient, whatever the layout and dtype."""

import pytest
import torch
from torch.autograd import gradcheck
from unit_helpers import FORMATS, maps, same

from dist_prune.gates.ops import scale_channels

SHAPES = [(2, 3, 2, 2), (1, 1, 1, 1), (3, 5, 7, 3), (2, 600, 2, 3), (4, 16, 8, 8)]
SMALL = [(2, 3, 2, 2), (1, 1, 1, 1), (2, 2, 3, 5)]


def plain_scale(x, gate):
    return x * gate[:, :, None, None]


def channel_gates(shape, gates, dtype=torch.float64):
    make = {"open": torch.ones, "closed": torch.zeros, "mixed": torch.rand}[gates]
    return make(shape[:2], dtype=dtype).requires_grad_()


@pytest.mark.parametrize("may_alias", [True, False])
@pytest.mark.parametrize("gates", ["open", "closed", "mixed"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scale_channels_is_maps_times_gates_in_value_and_gradient(shape, layout, gates, may_alias):
    inputs = maps(shape, layout), channel_gates(shape, gates)
    upstream = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=FORMATS[layout])
    ours, theirs = scale_channels(*inputs, may_alias), plain_scale(*inputs)
    same(ours, theirs)
    same(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), 1e-12)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_scale_channels_passes_torchs_check_of_gradients(shape, layout):
    assert gradcheck(scale_channels, (maps(shape, layout), channel_gates(shape, "mixed")))


@pytest.mark.parametrize("map_layout", FORMATS)
@pytest.mark.parametrize("grad_layout", FORMATS)
def test_scale_channels_takes_mixed_layouts(map_layout, grad_layout):
    shape = (3, 4, 5, 2)
    inputs = maps(shape, map_layout), channel_gates(shape, "mixed")
    upstream = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=FORMATS[grad_layout])
    ours, theirs = scale_channels(*inputs), plain_scale(*inputs)
    same(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream))


@pytest.mark.parametrize("layout", FORMATS)
def test_open_channels_cost_no_copy_unless_the_result_may_be_changed_in_place(layout):
    x = maps((2, 3, 4, 4), layout, torch.float32)
    gate = channel_gates(x.shape, "open", torch.float32)
    assert scale_channels(x, gate).data_ptr() == x.data_ptr()
    before = x.detach().clone()
    changed = scale_channels(x, gate, may_alias=False)
    changed += 1  # as a shortcut is added in place
    assert torch.equal(x, before)
    (gradient,) = torch.autograd.grad(changed.square().sum(), x)
    same(gradient, 2 * (before + 1), 1e-6)


@pytest.mark.parametrize("gates", ["open", "mixed"])
@pytest.mark.parametrize("layout", FORMATS)
def test_scale_channels_of_bf16_maps_is_exact_within_rounding(layout, gates):
    shape, rounding = (4, 16, 9, 9), 2**-8
    x, gate = maps(shape, layout, torch.bfloat16), channel_gates(shape, gates, torch.float32)
    out, upstream = scale_channels(x, gate), torch.randn(shape).bfloat16()
    wide = [t.detach().double().requires_grad_() for t in (x, gate)]
    exact = plain_scale(*wide)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2 * rounding, atol=0)
    ours = torch.autograd.grad(out, (x, gate), upstream)
    theirs = torch.autograd.grad(exact, wide, upstream.double())
    assert [g.dtype for g in ours] == [torch.bfloat16, torch.float32]
    for our, their in zip(ours, theirs, strict=True):
        assert (our.double() - their).abs().max() <= 4 * rounding * their.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gates", ["open", "closed", "mixed"])
@pytest.mark.parametrize("shape", [(3, 16, 8, 8), (2, 5, 3, 7), (1, 33, 1, 1)], ids=str)
@pytest.mark.parametrize("may_alias", [True, False])
def test_the_compiled_kernel_scales_as_the_plain_expression_does(shape, gates, dtype, may_alias, compiled):
    x, gate = maps(shape, "channels_last", dtype), channel_gates(shape, gates, torch.float32)
    upstream = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    out = scale_channels(x, gate, may_alias)
    wide = [t.detach().double().requires_grad_() for t in (x, gate)]
    exact = plain_scale(*wide)
    ours = out, *torch.autograd.grad(out, (x, gate), upstream)
    theirs = exact, *torch.autograd.grad(exact, wide, upstream.double())
    unit = torch.finfo(dtype).eps
    for our, their in zip(ours, theirs, strict=True):
        assert (our.double() - their).abs().max() <= 4 * unit * max(1.0, their.abs().max().item())
