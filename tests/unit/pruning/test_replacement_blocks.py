"""Replacement blocks of sliced networks, against plain expressions."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.vision_transformer import EncoderBlock
from unit_helpers import shaken

from dist_prune.pruning.replacement_blocks import (
    AddToChannels,
    AttentionOnly,
    ConstantMap,
    MlpOnly,
    SelectChannels,
    Shift,
    own_activation,
)


def test_a_shift_adds_one_number_to_each_channel():
    x, shift = torch.randn(2, 3, 4, 5), torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(Shift(shift)(x), x + shift[None, :, None, None])


@pytest.mark.parametrize(("stride", "height", "width"), [(1, 5, 4), (2, 3, 2), (3, 2, 2)])
def test_a_constant_map_has_the_size_that_a_padded_convolution_leaves(stride, height, width):
    values = torch.tensor([1.0, -2.0])
    seen = ConstantMap(values, stride)(torch.randn(3, 7, 5, 4))
    assert seen.shape == nn.Conv2d(7, 2, 3, stride, padding=1)(torch.randn(3, 7, 5, 4)).shape
    assert torch.equal(seen, values[None, :, None, None].expand(3, 2, height, width))


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 5, 1, 1), (1, 5, 4, 4), (1, 5, 1, 1)])
def test_an_activation_may_work_in_place_on_a_constant_map(shape):
    """As the ReLU of a block does; the parameter itself stays as it is."""
    constant = ConstantMap(torch.tensor([1.0, -2.0]), stride=1)
    out = nn.ReLU(inplace=True)(constant(torch.randn(shape)))
    out.sum().backward()
    assert constant.values.tolist() == [1.0, -2.0]
    assert constant.values.grad.tolist() == [shape[0] * shape[2] * shape[3], 0.0]


@pytest.mark.parametrize(("channels", "is_view"), [([2, 3, 4], True), ([0], True), ([0, 2, 5], False)])
def test_selected_channels_are_a_view_where_they_lie_side_by_side(channels, is_view):
    x = torch.randn(2, 6, 3, 3)
    seen = SelectChannels(channels)(x)
    assert torch.equal(seen, x[:, channels])
    assert (seen.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) is is_view


@pytest.mark.parametrize("downsample", [False, True])
def test_a_branch_may_add_to_some_channels_only(downsample):
    block = shaken(BasicBlock(6, 6, downsample=nn.Conv2d(6, 6, 1) if downsample else None)).double().eval()
    x, channels = torch.randn(2, 6, 4, 4, dtype=torch.float64), [0, 3, 4]
    first = block.bn1(block.conv1(x)).clamp(min=0)
    branch = block.bn2(block.conv2(first))
    expected = (x if block.downsample is None else block.downsample(x)).clone()
    expected[:, channels] += branch[:, channels]
    narrow = nn.Conv2d(6, 3, 3, padding=1, bias=False).double()
    narrow.weight.data = block.conv2.weight.data[channels]
    norm = nn.BatchNorm2d(3).double().eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data = getattr(block.bn2, name).data[channels]
    block.conv2, block.bn2 = narrow, norm
    before = x.clone()
    torch.testing.assert_close(AddToChannels(block, channels)(x), expected.clamp(min=0), rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before), "the block before may still need it"


def test_a_transformer_block_without_a_branch_is_the_other_branch_alone():
    block = EncoderBlock(2, 8, 16, 0.0, 0.0).eval()
    x = torch.randn(2, 5, 8)
    read = block.ln_1(x)
    attention = x + block.self_attention(read, read, read)[0]
    torch.testing.assert_close(AttentionOnly(block)(x), attention)
    torch.testing.assert_close(MlpOnly(block)(x), x + block.mlp(block.ln_2(x)))
    torch.testing.assert_close(MlpOnly(block)(AttentionOnly(block)(x)), block(x))


def test_the_last_activation_of_a_block_gets_an_own_copy_that_leaves_its_input_alone():
    block = BasicBlock(3, 3)
    activation = own_activation(block)
    assert block.relu.inplace
    assert not activation.inplace
