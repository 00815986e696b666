"""Small networks, masks and comparisons that several unit tests share."""

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VGG, ResNet
from torchvision.models.vgg import make_layers

from dist_prune import attach_gates, build_model, gate_means
from dist_prune.gates.gate import Gate
from dist_prune.gates.wrappers import gated_modules, sites
from dist_prune.pruning.mask import UnitMask

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def maps(shape: Sequence[int], layout: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random feature maps in a memory layout, as a leaf that wants a gradient."""
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=FORMATS[layout]).requires_grad_()


def same(ours: Any, theirs: Any, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` with random batch-norm statistics and affine parts: no branch is zero, no norm trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.4, 1.2),
                (module.bias.data, -0.4, 0.4),
            ):
                drawn = torch.rand(tensor.shape, generator=generator) * (high - low) + low
                tensor.copy_(drawn.to(tensor))
    return model


@torch.no_grad()
def undecided(gated: nn.Module) -> nn.Module:
    """``gated`` with gates set so that each unit opens for about half of such ``images``."""

    def balance(gate: Gate, inputs: tuple[Tensor]) -> None:
        features = inputs[0].flatten(1) if gate.flatten else inputs[0].mean((2, 3))
        if gate.body:
            hidden = gate.body[0](features)
            gate.body[1].running_mean.copy_(hidden.mean(0))
            gate.body[1].running_var.copy_(hidden.var(0))
        nn.init.normal_(gate.last.weight)
        gate.threshold.zero_()  # a budget begins with gates that are held open
        gate.last.bias -= gate.last(gate.body(features)).median(0).values + 0.01

    hooks = [wrapper.gate.register_forward_pre_hook(balance) for _, wrapper in gated_modules(gated)]
    gated.eval()(images(32))
    gate_means(gated)
    for hook in hooks:
        hook.remove()
    return gated


def gated_resnet(depth: int = 20, shortcut: str = "B", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A CIFAR ResNet with gates that disagree about samples, and with shaken batch norms; eval mode."""
    plain = shaken(build_model(f"resnet{depth}", num_classes=10, shortcut=shortcut, width=8))
    return undecided(attach_gates(plain)).to(dtype).eval()


def half_resnet(block: type[nn.Module], blocks: Sequence[int] = (2, 1)) -> nn.Module:
    """The first half of a torchvision ResNet: blocks that keep their input's shape and one that changes it."""
    whole = ResNet(block, [*blocks, 1, 1])
    parts = [*list(whole.named_children())[:6], ("avgpool", whole.avgpool), ("flatten", nn.Flatten())]
    return nn.Sequential(OrderedDict([*parts, ("fc", nn.Linear(128 * block.expansion, 10))]))


def small_vgg(batch_norm: bool) -> nn.Module:
    """VGG with few channels and a small classifier, which reads its maps pixel by pixel all the same."""
    with torch.device("meta"):  # the classifier that it brings has 120 million parameters
        model = VGG(nn.Identity(), num_classes=10, init_weights=False)
    model.features = make_layers([8, "M", 12, 12, "M", 16], batch_norm=batch_norm)
    model.classifier = nn.Sequential(nn.Linear(16 * 7 * 7, 20), nn.ReLU(True), nn.Linear(20, 10))
    return model


def images(count: int = 4, size: int = 16, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise around a color of its own for each sample."""
    colors = torch.randn(count, channels, 1, 1, dtype=dtype)
    return colors + torch.randn(count, channels, size, size, dtype=dtype)


def mask_closing(gated: nn.Module, closed: Iterable[str]) -> UnitMask:
    """The mask that closes exactly the sites called ``closed``."""
    closed, all_sites = set(closed), sites(gated)
    assert closed <= {site.name for site in all_sites}
    return UnitMask.of({s.name: () if s.name in closed else tuple(range(s.units)) for s in all_sites}, all_sites)


def random_mask(gated: nn.Module, seed: int) -> UnitMask:
    drawn = random.Random(seed)
    return mask_closing(gated, [site.name for site in sites(gated) if drawn.random() < 0.5])


def relative_difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
