"""Networks of no known family, tiny, and some of a user's own."""

import timm
import torch
import torch.nn.functional as F
from timm.models import efficientnet, mobilenetv3, regnet
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from unit_helpers import shaken


def conv(read: int, made: int, *options, **more) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(read, made, *options, bias=False, **more), nn.BatchNorm2d(made), nn.ReLU(inplace=True)
    )


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Residual(nn.Module):
    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Norm(nn.Module):
    """A scale and a shift for each channel, tensors of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(channels, 1, 1)), nn.Parameter(torch.rand(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class UNet(nn.Module):
    """Down and up again; what goes down is concatenated to what comes up."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = conv(3, 8, 3, padding=1), conv(8, 12, 3, stride=2, padding=1)
        self.up, self.join = nn.ConvTranspose2d(12, 8, 2, 2), conv(16, 10, 3, padding=1)
        self.out = nn.Sequential(*head(10))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down(x)
        return self.out(self.join(torch.cat([wide, F.relu(self.up(self.deep(wide)))], 1)))


class GatedMlp(nn.Module):
    """Tokens, attention with heads, and an MLP whose first layer makes values and their gates."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.embed, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.wide, self.narrow, self.out = nn.Linear(16, 40), nn.Linear(20, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        values, gates = self.wide(x).chunk(2, dim=-1)
        return self.out((x + self.narrow(values * F.gelu(gates))).mean(1))


def group_norm() -> nn.Module:
    first = nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.SiLU(), nn.Conv2d(12, 16, 3, groups=4), nn.SiLU()
    return nn.Sequential(*first, nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), Norm(8), nn.PReLU(8), *head(8))


def squeeze_excite() -> nn.Module:
    branch = conv(8, 16, 1), conv(16, 16, 3, padding=1, groups=16), SqueezeExcite(16), nn.Conv2d(16, 8, 1, bias=False)
    return nn.Sequential(conv(3, 8, 3), Residual(*branch, nn.BatchNorm2d(8)), *head(8))


def resnext() -> nn.Module:
    branch = conv(8, 16, 1), conv(16, 16, 3, padding=1, groups=4), nn.Conv2d(16, 8, 1)
    return nn.Sequential(conv(3, 8, 3), Residual(*branch, nn.BatchNorm2d(8)), nn.ReLU(), *head(8))


def mlp() -> nn.Module:
    layers = [nn.Linear(3 * 8 * 8, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 16), nn.BatchNorm1d(16), nn.Tanh()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, 10))


def timm_model(name: str, **options):
    return lambda: timm.create_model(name, num_classes=10, **options)


def efficientnet_b0() -> nn.Module:
    blocks = [["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k3_s2_e4_c12_se0.25"]]
    return efficientnet.EfficientNet(efficientnet.decode_arch_def(blocks), 10, stem_size=8, num_features=24)


def mobilenetv3_small() -> nn.Module:
    blocks = [["ds_r1_k3_s2_e1_c8_se0.25_nre"], ["ir_r2_k5_s1_e3_c12_se0.25"], ["cn_r1_k1_s1_c24"]]
    act, decoded = nn.Hardswish, efficientnet.decode_arch_def(blocks)
    return mobilenetv3.MobileNetV3(decoded, 10, stem_size=8, num_features=32, act_layer=act)


def regnety() -> nn.Module:
    return regnet.RegNet(regnet.RegNetCfg(depth=8, w0=8, wa=8, wm=2, group_size=8, se_ratio=0.25), num_classes=10)


def mixer() -> nn.Module:
    return MlpMixer(10, img_size=32, patch_size=8, num_blocks=1, embed_dim=16)


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SWIN = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 12, "depths": (2, 1), "num_heads": (2, 2)}
# By name: the network, the size of its images and the number of sites.
NETWORKS = {
    "convnext": (timm_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)), 32, 4),
    "mobilenetv3": (mobilenetv3_small, 32, 9),
    "efficientnet": (efficientnet_b0, 32, 6),
    "regnety": (regnety, 32, 20),
    "vit": (timm_model("vit_tiny_patch16_224", **VIT), 32, 4),
    "swin": (timm_model("swin_tiny_patch4_window7_224", **SWIN), 32, 3),
    "mixer": (mixer, 32, 2),
    "seresnet": (timm_model("seresnet50", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8)), 32, 13),
    "resnetv2": (timm_model("resnetv2_50", layers=(1, 1), channels=(16, 16), stem_chs=8), 32, 7),
    "densenet": (timm_model("densenet121", growth_rate=4, block_config=(2, 2)), 32, 4),
    "U-Net": (UNet, 16, 4),
    "gated MLP": (GatedMlp, 16, 2),
    "GroupNorm": (group_norm, 16, 2),
    "squeeze-excite": (squeeze_excite, 16, 2),
    "ResNeXt": (resnext, 16, 1),
    "MLP": (mlp, 8, 2),
}


def network(name: str) -> tuple[nn.Module, int]:
    """The network in eval mode, none of whose tensors is trivial, and the size of its images."""
    torch.manual_seed(0)
    make, size, _ = NETWORKS[name]
    model = shaken(make()).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter)
        elif parameter.dim() == 1:
            parameter.data += 0.3 * torch.rand_like(parameter)  # layer scales and biases begin near zero
    return model, size
