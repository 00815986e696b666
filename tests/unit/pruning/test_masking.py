"""A mask on a plain network: closed units contribute zero, which is what slicing leaves."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from unit_helpers import images, shaken, small_vgg

from dist_prune import UserError, build_model
from dist_prune.gates.consensus import masked
from dist_prune.gates.insertion import attach_gates, find_sites
from dist_prune.pruning.mask import UnitMask

NETWORKS = {
    "resnet": lambda: build_model("resnet14", num_classes=10, width=8),
    "mobilenet": lambda: torchvision.models.mobilenet_v2(
        num_classes=10, width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 3, 2]]
    ),
    "vit": lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=10),
    "vgg": lambda: small_vgg(batch_norm=True),
}
SITES = [
    ("resnet", "layer", "between"),
    ("mobilenet", "layer", "between"),
    ("vit", "layer", "between"),
    ("resnet", "channel", "before"),
    ("resnet", "channel", "between"),
    ("resnet", "channel", "after"),
    ("vgg", "channel", "between"),
]


def mask_of(module: nn.Module, kind: str, position: str) -> UnitMask:
    """Every other unit stays, every other layer as well."""
    found = find_sites(module, kind, position)
    return UnitMask.of({s.name: range(n % 2, s.units, 2) for n, s in enumerate(found)}, found)


@pytest.mark.parametrize(("name", "kind", "position"), SITES)
def test_masked_equals_the_gated_network_with_fixed_gates_and_the_sliced_one(name, kind, position):
    plain, x = shaken(NETWORKS[name]()).double().eval(), images(4, size=32).double()
    # torchvision starts the head of a ViT at zero.
    nn.init.normal_([m for m in plain.modules() if isinstance(m, nn.Linear)][-1].weight)
    mask = mask_of(plain, kind, position)
    found = mask.masked(plain)(x)
    gated = attach_gates(copy.deepcopy(plain), kind, position=position)
    torch.testing.assert_close(found, masked(gated, mask)(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mask.sliced(plain)(x), found, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain(x), found)


def test_a_mask_of_another_network_is_refused():
    plain = NETWORKS["resnet"]()
    other = mask_of(build_model("resnet20", num_classes=10), "layer", "between")
    with pytest.raises(UserError, match="missing or unknown"):
        other.masked(plain)
