"""Transitions: each tensor of a new phase inherits a slice of one of the old phase."""

import pytest
import torch
from unit_helpers import gated_resnet, images, mask_closing, shaken

from dist_prune import build_model
from dist_prune.gates.consensus import masked, slice_gated_network
from dist_prune.methods import Transition
from dist_prune.pruning.families import channel_sites
from dist_prune.pruning.slicing import TensorSlice, slice_network


def test_without_indices_the_whole_tensor_is_inherited_as_a_copy():
    old = torch.randn(3, 4)
    new = TensorSlice("w").take(old)
    assert torch.equal(new, old)
    new.zero_()
    assert old.abs().sum() > 0


def test_indices_choose_slices_dimension_by_dimension():
    old = torch.arange(24.0).view(2, 3, 4)
    rows, columns = torch.tensor([2, 0]), torch.tensor([1, 3])
    assert torch.equal(TensorSlice("w", (None, rows)).take(old), old[:, [2, 0]])
    assert torch.equal(TensorSlice("w", (torch.tensor([1]), None, columns)).take(old), old[[1]][:, :, [1, 3]])
    assert torch.equal(TensorSlice("w", (None, rows, columns)).take(old), old[:, [2, 0]][:, :, [1, 3]])


def test_a_slice_is_a_copy_even_where_everything_stays():
    old = torch.arange(4.0)
    TensorSlice("w", (torch.arange(4),)).take(old).zero_()
    assert torch.equal(old, torch.arange(4.0))


def test_indices_work_on_momentum_as_on_weights():
    """One mechanism: the optimizer's state of a slice is the slice of the optimizer's state."""
    weight, momentum = torch.randn(4, 3), torch.randn(4, 3)
    inherited = TensorSlice("w", (torch.tensor([3, 1]),))
    assert torch.equal(inherited.take(weight), weight[[3, 1]])
    assert torch.equal(inherited.take(momentum), momentum[[3, 1]])


def test_origins_of_a_cut_carry_every_tensor_over():
    gated = gated_resnet(14)
    mask = mask_closing(gated, ["layer1.1", "layer3.0"])
    small, origins = slice_gated_network(gated, mask.kept)
    transition = Transition(origins)
    assert transition.keep_optimizer
    old = gated.state_dict()
    inherited = {new: origin.take(old[origin.name]) for new, origin in transition.tensors.items()}
    for parameter in small.parameters():
        torch.nn.init.zeros_(parameter)
    small.load_state_dict(inherited, strict=True)
    x = images()
    torch.testing.assert_close(small.eval()(x), masked(gated, mask)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["before", "between", "after"])
def test_origins_of_narrowed_tensors_are_slices_of_the_old_ones(position):
    plain = shaken(build_model("resnet14", num_classes=10, width=8)).eval()
    found = channel_sites(plain, position)
    small, origins = slice_network(plain, {site.name: range(1, site.units, 2) for site in found})
    old, new = plain.state_dict(), small.state_dict()
    assert origins.keys() == new.keys()
    for name, origin in origins.items():
        assert torch.equal(new[name], origin.take(old[origin.name])), name
    assert sum(new[n].shape != old[o.name].shape for n, o in origins.items()) >= len(found)


def test_constants_that_closed_channels_leave_behind_have_no_origin():
    plain = shaken(build_model("resnet8", num_classes=10, width=8)).eval()
    for _ in range(20):  # a new tensor may come to lie where an old one was
        small, origins = slice_network(plain, {"layer1.0.between": (), "layer3.0.before": ()})
        assert small.state_dict().keys() - origins.keys() == {"layer1.0.0.shift", "layer3.0.conv1.values"}
        assert Transition(origins).tensors.keys() == origins.keys()


def test_a_transition_that_names_nothing_starts_anew():
    assert Transition().tensors == {}
