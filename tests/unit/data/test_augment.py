"""Batches change as their numbers from [0, 1) say, and each function does what its name says."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dist_prune.data.augment import POLICIES, apply_policy, cutmix, cutout, flip, mixup, padded_crops


def noise(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).randint(1, 256, shape, dtype=np.uint8)


def draws(*shape: int) -> np.ndarray:
    return np.random.RandomState(1).random_sample(shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_padded_crops_are_the_windows_of_the_padded_image_that_the_draws_name(channels):
    pixels, numbers = noise(50, 6, 5, channels), draws(50, 2)
    found = padded_crops(pixels, 2, numbers)
    for image, (y, x), cropped in zip(pixels, numbers, found, strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        assert np.array_equal(cropped, padded[int(5 * y) :, int(5 * x) :][:6, :5])
    assert {(int(5 * y), int(5 * x)) for y, x in numbers} >= {(0, 0), (4, 4)}


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_mirror_the_images_below_one_half_from_left_to_right(channels):
    pixels, numbers = noise(20, 4, 5, channels), draws(20)
    found = pixels.copy()
    flip(found, numbers)
    assert 0 < (numbers < 0.5).sum() < 20
    for before, number, after in zip(pixels, numbers, found, strict=True):
        assert np.array_equal(after, before[:, ::-1] if number < 0.5 else before)


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_cutout_fills_a_square_around_a_pixel_as_far_as_it_is_inside(side):
    pixels, numbers, fill = noise(60, 8, 6, 3), draws(60, 2), np.array([10, 20, 30], np.uint8)
    found = pixels.copy()
    cutout(found, side, fill, numbers)
    for before, (y, x), after in zip(pixels, numbers, found, strict=True):
        expected = before.copy()
        top, left = int(8 * y) - side // 2, int(6 * x) - side // 2
        expected[max(0, top) : top + side, max(0, left) : left + side] = fill
        assert np.array_equal(after, expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_are_those_of_torchvision_with_a_seed_for_each_image(policy, channels):
    pixels = noise(12, 16, 16, channels)
    found, before = pixels.copy(), torch.random.get_rng_state()
    apply_policy(found, policy, range(12))
    assert torch.equal(before, torch.random.get_rng_state())
    for seed, (image, changed) in enumerate(zip(pixels, found, strict=True)):
        torch.manual_seed(seed)
        expected = POLICIES[policy]()(Image.fromarray(image.squeeze()))
        assert np.array_equal(changed, np.asarray(expected).reshape(image.shape))
    assert not np.array_equal(found, pixels)


def test_mixup_adds_the_next_image_and_its_target():
    images, targets = torch.rand(3, 4, 4, 3), F.one_hot(torch.tensor([0, 2, 1]), 3).float()
    mixed, labels = mixup(images, targets, 0.7)
    for number, following in ((0, 1), (1, 2), (2, 0)):
        torch.testing.assert_close(mixed[number], 0.7 * images[number] + 0.3 * images[following])
        torch.testing.assert_close(labels[number], 0.7 * targets[number] + 0.3 * targets[following])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("center", [(0.5, 0.5), (0.0, 0.99)])
def test_cutmix_pastes_a_rectangle_of_the_next_image_and_targets_follow_its_area(share, center):
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 20, 30, 3)
    mixed, labels = cutmix(images, F.one_hot(torch.tensor([0, 1, 2]), 3).float(), share, np.array(center))
    for number, following in ((0, 1), (1, 2), (2, 0)):
        foreign = mixed[number, ..., 0] == following
        assert torch.equal(mixed[number, ..., 0], torch.where(foreign, float(following), float(number)))
        replaced = foreign.float().mean().item()
        assert labels[number].tolist() == pytest.approx(
            [{number: 1 - replaced, following: replaced}.get(label, 0.0) for label in range(3)]
        )
        rows, columns = foreign.any(1).sum().item(), foreign.any(0).sum().item()
        assert foreign.sum().item() == rows * columns
        if center == (0.5, 0.5):
            assert replaced == pytest.approx(1 - share, abs=0.06)
            assert rows / 20 == pytest.approx((1 - share) ** 0.5, abs=0.06)
