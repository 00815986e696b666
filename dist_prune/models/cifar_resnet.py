"""The CIFAR ResNets of He et al. (arXiv 1512.03385, section 4.2): depth 6n + 2, widths 16, 32 and 64.

Shortcuts where the width changes: option A subsamples and pads with zero channels (no parameters), option B
projects by a 1x1 convolution with batch norm. Dense MACs at 32 x 32 (fvcore): ResNet-20/56/110 have
40.93/126.55/254.99 M with A, 41.22/126.84/255.28 M with B.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

_DEEPEST = 2000  # the deepest of the paper has 1202 layers; an untrusted description may ask for billions


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels filled with zeros, half on each side."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class CifarResNet(nn.Module):
    """Three stages of (depth - 2) / 6 blocks; the second and third halve the resolution.

    width: channels of the first stage; the others have 2 and 4 times as many. It need not be whole (11.3 gives
    11, 23 and 45 channels), so that a narrower network can meet a MACs budget. Raises ValueError for a depth
    that is not 6n + 2, a width under 1 or an unknown shortcut option.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, shortcut: str = "B", width: float = 16
    ) -> None:
        super().__init__()
        if not 8 <= depth <= _DEEPEST or (depth - 2) % 6:
            raise ValueError(f"a CIFAR ResNet has depth 6n + 2 (8, 14, 20, ... up to {_DEEPEST}), not {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut is 'A' (padding) or 'B' (projection), not {shortcut!r}")
        if width < 1:
            raise ValueError(f"a CIFAR ResNet has a width of 1 channel at least, not {width}")
        blocks = (depth - 2) // 6
        first, second, third = (round(width * factor) for factor in (1, 2, 4))
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(first, first, blocks, 1, shortcut)
        self.layer2 = _stage(first, second, blocks, 2, shortcut)
        self.layer3 = _stage(second, third, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, option: str) -> nn.Sequential:
    shortcut: nn.Module | None = None
    if (stride != 1 or in_channels != out_channels) and option == "A":
        shortcut = PadShortcut(in_channels, out_channels, stride)
    elif stride != 1 or in_channels != out_channels:
        projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))
