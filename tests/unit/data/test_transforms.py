"""Batches are what the images and the augmentation say, and random numbers come from the generator alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools import ShardError
from data_tools.index import ShardIndex
from dist_prune.data.transforms import Augment, ImageTransform


def index(shape, mean=(0.5,), std=(0.25,)) -> ShardIndex:
    return ShardIndex("toy", "digits", 0, "x", ("a",), shape, mean, std, {}, None)


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.RandomState(0)
    return Image.fromarray(rng.randint(0, 256, (height, width, 3), dtype=np.uint8))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_without_augmentation_pixels_are_only_normalized():
    transform = ImageTransform(
        index((3, 5, 4), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), None, Augment(), True, False
    )
    image = picture(4, 5)
    batch = transform.finish(np.stack([transform.prepare(image, rng())]), rng())
    expected = (np.asarray(image) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert batch.dtype == torch.float32
    assert batch.shape == (1, 3, 5, 4)
    assert np.allclose(batch[0].permute(1, 2, 0), expected, atol=1e-6)


def test_flips_mirror_about_half_of_the_images_and_only_from_left_to_right():
    transform = ImageTransform(index((1, 2, 3), (0,), (1,)), None, Augment(flip=True), True, False)
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1).repeat(400, axis=0)
    images = (transform.finish(pixels.copy(), rng()) * 255).round().to(torch.uint8)[:, 0]
    plain = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    mirrored = plain.flip(1)
    count = sum(torch.equal(image, mirrored) for image in images)
    assert all(torch.equal(image, plain) or torch.equal(image, mirrored) for image in images)
    assert 150 < count < 250


def test_padded_crops_are_all_windows_of_the_padded_image():
    transform = ImageTransform(index((1, 3, 3), (0,), (1,)), None, Augment(crop_padding=1), True, False)
    pixels = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1).repeat(300, axis=0)
    images = (transform.finish(pixels.copy(), rng()) * 255).round().to(torch.int64)[:, 0]
    padded = np.pad(np.arange(1, 10).reshape(3, 3), 1)
    windows = {tuple(padded[y : y + 3, x : x + 3].ravel()) for y in range(3) for x in range(3)}
    assert {tuple(image.flatten().tolist()) for image in images} == windows


def test_evaluation_ignores_the_augmentation():
    augment = Augment(crop_padding=2, flip=True)
    transform = ImageTransform(index((3, 6, 6), (0,) * 3, (1,) * 3), None, augment, False, False)
    pixels = np.stack([np.asarray(picture(6, 6))] * 20)
    images = transform.finish(pixels.copy(), rng())
    assert torch.allclose(images, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)


def test_the_same_generator_gives_the_same_batch_and_another_one_another():
    augment = Augment(crop_padding=2, flip=True, random_resized_crop=True)
    transform = ImageTransform(index(None, (0.5,) * 3, (0.5,) * 3), 8, augment, True, False)
    images = [picture(20, 30), picture(31, 17)] * 4

    def batch(seed):
        generator = rng(seed)
        return transform.finish(
            np.stack([transform.prepare(image, generator) for image in images]), generator
        )

    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(batch(1), batch(1))
    assert not torch.equal(batch(1), batch(2))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_photographs_are_evaluated_on_their_centre():
    transform = ImageTransform(index(None, (0,) * 3, (1,) * 3), 224, Augment(), False, False)
    image = picture(600, 512)
    found = transform.prepare(image, rng()).astype(int)
    scaled = image.resize((300, 256), Image.Resampling.BILINEAR)
    left, top = (300 - 224) // 2, (256 - 224) // 2
    expected = np.asarray(scaled.crop((left, top, left + 224, top + 224))).astype(int)
    assert found.shape == (224, 224, 3)
    assert np.abs(found - expected).mean() < 1  # scaling and cutting in two steps rounds elsewhere


def test_images_of_one_size_are_scaled_without_losing_the_border():
    transform = ImageTransform(index((3, 8, 8), (0,) * 3, (1,) * 3), 32, Augment(), False, False)
    image = picture(8, 8)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(transform.prepare(image, rng()), expected)


@pytest.mark.parametrize("size", [(40, 30), (500, 10), (10, 500), (1, 1)])
def test_random_crops_fit_any_image(size):
    transform = ImageTransform(index(None), 16, Augment(random_resized_crop=True), True, False)
    generator = rng()
    assert {transform.prepare(picture(*size), generator).shape for _ in range(30)} == {(16, 16, 3)}


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_is_as_asked(channels_last):
    transform = ImageTransform(index((3, 6, 5), (0,) * 3, (1,) * 3), None, Augment(), True, channels_last)
    images = transform.finish(np.zeros((4, 6, 5, 3), np.uint8), rng())
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert images.is_contiguous() != channels_last


def test_images_of_several_sizes_need_a_size():
    with pytest.raises(ShardError, match="differ in size: choose an image_size"):
        ImageTransform(index(None), None, Augment(), True, False)
    with pytest.raises(ShardError, match="image_size is 0"):
        ImageTransform(index(None), 0, Augment(), True, False)
