"""Normalization and mixing: bit for bit what they say, on the device that trains."""

import numpy as np
import pytest
import torch

from data_tools.index import ShardIndex
from dist_prune.config import AugmentConfig
from dist_prune.data.batch_rng import BatchRng
from dist_prune.data.transforms import BatchTransform

CPU = torch.device("cpu")
NOTHING = AugmentConfig()
PLAIN = ShardIndex.model_construct(
    name="toy", class_names=tuple("abcd"), image_shape=None, mean=(0.0,) * 3, std=(1.0,) * 3, splits={}
)
USUAL = PLAIN.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)})


def transform(index=USUAL, width=4, augment=NOTHING, channels_last=False, device=CPU) -> BatchTransform:
    return BatchTransform(index, width, augment, channels_last, device)


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8))


def draws(step: int = 0, first: int = 0) -> BatchRng:
    return BatchRng(1, 0, step, first, 4)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) of (B, H, W, C), in fp32: times 1 / (255 std), less mean / std."""
    mean, std = np.array(USUAL.mean), np.array(USUAL.std)
    scale, shift = torch.tensor(1 / (255 * std)).float(), torch.tensor(-mean / std).float()
    return (pixels.float() * scale + shift).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_without_mixing_pixels_are_normalized_and_labels_stay(channels_last):
    pixels, labels = noise(64, 5, 4, 3), torch.arange(64) % 4
    images, same = transform(channels_last=channels_last)(pixels, labels, draws())
    assert images.dtype == torch.float32
    assert torch.equal(images, normalized(pixels))
    assert torch.equal(same, labels)
    expected = (pixels.numpy() / 255 - USUAL.mean) / USUAL.std
    assert np.allclose(images.permute(0, 2, 3, 1), expected, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_is_as_asked(channels_last):
    images, _ = transform(channels_last=channels_last)(noise(4, 6, 4, 3), torch.zeros(4).long(), draws())
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert images.is_contiguous() != channels_last


def test_mixup_adds_the_next_normalized_image_by_the_share_of_the_step():
    pixels, labels = noise(4, 5, 4, 3), torch.tensor([0, 3, 1, 2])
    images, soft = transform(augment=AugmentConfig(mixup=0.4))(pixels, labels, draws(7))
    plain, targets = normalized(pixels), torch.eye(4)[labels]
    rest = 1 - draws(7).beta_of_batch("mixup", 0.4)
    assert torch.equal(images, plain.contiguous().lerp(plain.roll(-1, 0).contiguous(), rest))
    assert torch.equal(soft, targets.lerp(targets.roll(-1, 0), rest))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 0.4), (0.4, 0.4)])
def test_mixed_labels_are_the_shares_of_the_images(mixup, cutmix):
    """Images of one value that spells their label: whatever the mixture, it is the expectation of its labels."""
    mixing = transform(PLAIN, 10, AugmentConfig(mixup=mixup, cutmix=cutmix))
    labels = torch.arange(4)
    pixels = labels.to(torch.uint8).view(4, 1, 1, 1).expand(4, 10, 10, 3).contiguous()
    kinds = set()
    for step in range(30):
        images, soft = mixing(pixels, labels, draws(step))
        assert soft.shape == (4, 4)
        assert torch.allclose(soft.sum(1), torch.ones(4))
        assert torch.allclose(soft @ torch.arange(4.0), 255 * images.mean((1, 2, 3)), atol=1e-4)
        assert (soft > 0).sum() <= 8
        kinds.add("cutmix" if torch.allclose(255 * images, (255 * images).round(), atol=1e-4) else "mixup")
    assert kinds == {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha}


def test_all_ranks_mix_a_global_batch_alike():
    mixing = transform(augment=AugmentConfig(mixup=0.4))
    shares = {mixing(noise(4, 4, 4, 3), torch.arange(4), draws(5, first))[1].max().item() for first in (0, 4, 8)}
    assert len(shares) == 1


@pytest.mark.parametrize("augment", [NOTHING, AugmentConfig(mixup=1.0), AugmentConfig(cutmix=1.0)])
def test_pixels_travel_as_bytes_and_all_else_is_done_on_the_device(augment, monkeypatch):
    """A device that computes shapes alone stands in for a GPU: operations that mix devices fail there too."""
    travelled, move = [], torch.Tensor.to

    def watched(tensor: torch.Tensor, *rest, **named):
        if rest == (torch.device("meta"),):
            travelled.append(tensor.dtype)
        return move(tensor, *rest, **named)

    ready = transform(augment=augment, device=torch.device("meta"))
    monkeypatch.setattr(torch.Tensor, "to", watched)
    images, labels = ready(noise(4, 5, 4, 3), torch.arange(4), draws())
    assert (images.device.type, labels.device.type) == ("meta", "meta")
    assert (images.shape, images.dtype) == ((4, 3, 5, 4), torch.float32)
    assert travelled == [torch.uint8, torch.int64]
