"""Weight masks: applied in the forward pass, made physical as zeros, stored as bits."""

import copy

import pytest
import torch
from torch import nn
from unit_helpers import images, shaken

from dist_prune import UserError, build_model
from dist_prune.pruning.mask import restore_decision
from dist_prune.pruning.weight_mask import WeightMask


def network() -> nn.Module:
    return shaken(build_model("resnet8", num_classes=10, width=4)).eval()


def random_mask(module: nn.Module, density: float = 0.4) -> WeightMask:
    generator = torch.Generator().manual_seed(2)
    weights = {name: w for name, w in module.named_parameters() if w.dim() > 1}
    return WeightMask({name: torch.rand(w.shape, generator=generator) < density for name, w in weights.items()})


def test_masked_and_sliced_compute_as_the_network_whose_weights_were_multiplied_by_the_mask():
    module, x = network(), images(4)
    mask = random_mask(module)
    expected = copy.deepcopy(module)
    for name, kept in mask.kept.items():
        expected.get_parameter(name).data.mul_(kept)
    assert 0.35 < mask.density < 0.45
    assert torch.equal(mask.masked(module)(x), expected(x))
    sliced = mask.sliced(module)
    assert torch.equal(sliced(x), expected(x))
    assert repr(sliced) == repr(module), "a plain network"
    assert not torch.equal(module(x), expected(x)), "the module itself stays as it is"


def test_an_attached_mask_changes_no_name_and_keeps_pruned_weights_without_a_gradient():
    module = network()
    mask, before = random_mask(module), dict(module.named_parameters())
    attached = mask.attach(mask.attach(module))
    assert attached is module
    assert dict(module.named_parameters()).keys() == before.keys()
    assert all(module.get_parameter(name) is weight for name, weight in before.items())
    assert module.state_dict().keys() == network().state_dict().keys()
    module(images(4)).square().sum().backward()
    for name, kept in mask.kept.items():
        gradient = module.get_parameter(name).grad
        assert not gradient[~kept].any()
        assert gradient[kept].any()
    assert repr(mask.sliced(module)) == repr(network())


def test_a_mask_comes_back_from_its_description_and_its_bits_an_eighth_of_a_byte_a_weight():
    mask = random_mask(network())
    packed = mask.tensors()
    found = restore_decision({"kind": mask.kind, **mask.as_dict()}, packed)
    assert found.kept.keys() == mask.kept.keys()
    assert all(torch.equal(found.kept[name], kept) for name, kept in mask.kept.items())
    assert all(len(packed[name]) == -(-kept.numel() // 8) for name, kept in mask.kept.items())


@pytest.mark.parametrize(
    ("name", "kept", "said"),
    [
        ("conv1.wight", torch.ones(1), "no weight of a convolution or linear layer is called 'conv1.wight'"),
        ("bn1.weight", torch.ones(4), "is called 'bn1.weight'"),
        ("fc.weight", torch.ones(2, 2), r"the mask of 'fc.weight' is \(2, 2\), the weight \(10, 16\)"),
    ],
)
def test_what_a_mask_does_not_fit_is_named(name, kept, said):
    with pytest.raises(UserError, match=said):
        WeightMask({name: kept.bool()}).attach(network())
