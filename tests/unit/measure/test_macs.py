"""MACs are fvcore's count in eval mode, attention included; what is not counted is named."""

import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer, vit_b_16

from dist_prune import build_model
from dist_prune.measure.macs import analyze_macs, count_macs, count_parameters
from dist_prune.pruning.costs import unit_costs
from dist_prune.pruning.families import layer_sites


def test_macs_of_single_layers_are_those_by_hand():
    assert count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 6)) == 8 * 3 * 9 * 60
    assert count_macs(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (4, 9, 9)) == 8 * 2 * 9 * 25
    assert count_macs(nn.BatchNorm2d(4), (4, 5, 5)) == 2 * 4 * 25
    assert count_macs(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), (3, 2, 2)) == 12 * 7
    assert count_macs(nn.ReLU(), (4, 5, 5)) == 0


def test_counting_leaves_the_model_as_it_is():
    model = build_model("resnet8", num_classes=10, width=4).double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, (3, 8, 8))
    unit_costs(model, (3, 8, 8), layer_sites(model))
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Tokens(nn.Module):
    """Images as tokens, one a row of pixels, in front of ``layer``, which is called once or (attention) thrice."""

    def __init__(self, layer: nn.Module, thrice: bool = False, **options: bool) -> None:
        super().__init__()
        self.layer, self.thrice, self.options = layer, thrice, options

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = images[:, 0]
        out = self.layer(*[tokens] * (3 if self.thrice else 1), **self.options)
        return out[0] if isinstance(out, tuple) else out


def attention(**options: bool) -> nn.Module:
    return Tokens(nn.MultiheadAttention(12, 3, batch_first=True), thrice=True, **options)


LAYERS = {
    "convolution": lambda: nn.Conv2d(1, 8, 3, stride=2, groups=1),
    "linear": lambda: Tokens(nn.Linear(12, 7)),
    "attention": lambda: attention(need_weights=False),
    "attention with weights": lambda: attention(need_weights=True),
    "attention of timm": lambda: Tokens(Attention(12, 3)),
    "biased products": lambda: Biased(),
}


class Biased(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images[:, 0]
        return torch.baddbmm(rows.new_zeros(1, 1, 1), rows, rows.transpose(1, 2))


def halved_flops(model: nn.Module, shape: tuple[int, int, int]) -> float:
    # torch does not count its fused attention on the CPU, but the products that the "math" backend makes of it.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, *shape))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", LAYERS)
def test_counts_equal_half_of_what_torch_counts_with_and_without_gradients(name):
    model, shape = LAYERS[name](), (1, 10, 12)
    expected = halved_flops(model, shape)  # in training mode, where torch has no operator for a whole layer
    assert expected > 0
    assert count_macs(model, shape) == expected
    frozen = model.requires_grad_(False).eval()
    assert count_macs(frozen, shape) == expected
    with torch.no_grad():
        assert count_macs(frozen, shape) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_transformer_without_gradients_costs_the_same():
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    count = analyze_macs(Tokens(layer), (1, 10, 12))
    assert count.total > halved_flops(attention(need_weights=False), (1, 10, 12))
    assert analyze_macs(Tokens(layer.requires_grad_(False)), (1, 10, 12)) == count


def test_a_vision_transformer_costs_what_torchvision_says():
    with torch.device("meta"):
        model = vit_b_16()
    count = count_macs(model.to_empty(device="cpu"), (3, 224, 224))
    norms = 25 * 197 * 768 * 5  # torchvision does not count them
    assert count - norms == pytest.approx(17.564e9, rel=1e-3)


def test_the_attention_site_of_a_transformer_pays_for_its_products_of_tokens():
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)
    costs = unit_costs(model, (3, 32, 32), layer_sites(model))
    site = next(site.name for site in costs.sites if site.name.endswith("self_attention"))
    tokens, width = 17, 16
    projections, products = 4 * tokens * width**2, 2 * tokens**2 * width
    norm = 5 * tokens * width
    assert costs.dense - costs.of({site: ()}) == projections + products + norm


class Fourier(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(torch.softmax(images, 1) * 2 + images.mean()).abs()


def test_operators_that_nobody_can_count_are_named_and_no_others():
    assert analyze_macs(nn.Sequential(nn.Conv2d(3, 4, 3), Fourier()), (3, 8, 8)).not_counted == ("aten::fft_rfft2",)
    costs = unit_costs(Fourier(), (3, 8, 8), ())
    assert costs.not_counted == ("aten::fft_rfft2",)


KNOWN = ["resnet20", "resnet18", "vgg11_bn", "mobilenet_v3_small", "densenet121", "convnext_tiny", "swin_t"]
KNOWN += ["timm/resnest14d", "timm/levit_128s"]


@pytest.mark.parametrize("name", KNOWN)
def test_nothing_of_well_known_networks_is_left_uncounted(name):
    side = 224 if "levit" in name else 64
    assert analyze_macs(build_model(name, num_classes=10), (3, side, side)).not_counted == ()


def test_parameters_count_trainable_or_not():
    model = nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 16
