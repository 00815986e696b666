"""Transitions: each tensor of a new phase inherits a slice of one of the old phase."""

import torch
from unit_helpers import gated_resnet, images, mask_closing

from dist_prune.consensus import cut, masked
from dist_prune.methods import Inherited, Transition


def test_without_indices_the_whole_tensor_is_inherited_as_a_copy():
    old = torch.randn(3, 4)
    new = Inherited("w").take(old)
    assert torch.equal(new, old)
    new.zero_()
    assert old.abs().sum() > 0


def test_indices_choose_slices_dimension_by_dimension():
    old = torch.arange(24.0).view(2, 3, 4)
    rows, columns = torch.tensor([2, 0]), torch.tensor([1, 3])
    assert torch.equal(Inherited("w", (None, rows)).take(old), old[:, [2, 0]])
    assert torch.equal(Inherited("w", (torch.tensor([1]), None, columns)).take(old), old[[1]][:, :, [1, 3]])
    assert torch.equal(Inherited("w", (None, rows, columns)).take(old), old[:, [2, 0]][:, :, [1, 3]])


def test_a_slice_is_a_copy_even_where_everything_stays():
    old = torch.arange(4.0)
    Inherited("w", (torch.arange(4),)).take(old).zero_()
    assert torch.equal(old, torch.arange(4.0))


def test_indices_work_on_momentum_as_on_weights():
    """One mechanism: the optimizer's state of a slice is the slice of the optimizer's state."""
    weight, momentum = torch.randn(4, 3), torch.randn(4, 3)
    inherited = Inherited("w", (torch.tensor([3, 1]),))
    assert torch.equal(inherited.take(weight), weight[[3, 1]])
    assert torch.equal(inherited.take(momentum), momentum[[3, 1]])


def test_origins_of_a_cut_carry_every_tensor_over():
    gated = gated_resnet(14)
    mask = mask_closing(gated, ["layer1.1", "layer3.0"])
    small, origins = cut(gated, mask.kept)
    transition = Transition.of(origins)
    assert transition.keep_optimizer
    old = gated.state_dict()
    inherited = {new: origin.take(old[origin.name]) for new, origin in transition.tensors.items()}
    for parameter in small.parameters():
        torch.nn.init.zeros_(parameter)
    small.load_state_dict(inherited, strict=True)
    x = images()
    torch.testing.assert_close(small.eval()(x), masked(gated, mask)(x), rtol=1e-5, atol=1e-5)


def test_a_transition_that_names_nothing_starts_anew():
    assert Transition().tensors == {}
