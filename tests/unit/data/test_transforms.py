"""Batches are what the images and the augmentation say; nothing random comes from elsewhere."""

import numpy as np
import pytest
import torch
from made_shards import encoded
from PIL import Image

from data_tools import ShardError
from data_tools.images import ImageError
from data_tools.index import ShardIndex
from dist_prune.config import AugmentConfig
from dist_prune.data.decode import Box, Size, random_box
from dist_prune.data.draws import Draws
from dist_prune.data.transforms import ImageTransform

PLAIN = AugmentConfig()


def index(shape, mean=(0.0,) * 3, std=(1.0,) * 3, classes=4) -> ShardIndex:
    channels = shape[0] if shape else 3
    names = tuple("abcdefgh"[:classes])
    return ShardIndex("toy", "toy", 0, "x", names, shape, mean[:channels], std[:channels], {}, None)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


def draws(rows: int, seed: int = 1, first: int = 0) -> Draws:
    return Draws(seed, 0, 0, first, rows)


def batch(transform: ImageTransform, images: list, drawn: Draws, labels=None):
    crops = transform.crops(drawn)
    pixels = np.stack([transform.prepare(image, crop) for image, crop in zip(images, crops, strict=True)])
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    return transform.finish(transform.augment(pixels.copy(), drawn), labels, drawn)


@pytest.mark.parametrize("encode", [False, True])
def test_without_augmentation_pixels_are_only_normalized(encode):
    transform = ImageTransform(index((3, 5, 4), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), None, PLAIN, True, False)
    pixels = [picture(5, 4, seed) for seed in range(3)]
    images, labels = batch(transform, [encoded(p) for p in pixels] if encode else pixels, draws(3))
    expected = (np.stack(pixels) / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.shape == (3, 3, 5, 4)
    assert np.allclose(images.permute(0, 2, 3, 1), expected, atol=1e-6)


def test_evaluation_ignores_the_augmentation():
    augment = AugmentConfig(crop_padding=2, flip=True, cutout=3, policy="randaugment", mixup=1.0, cutmix=1.0)
    transform = ImageTransform(index((3, 6, 6)), None, augment, False, False)
    pixels = [picture(6, 6, seed) for seed in range(20)]
    images, labels = batch(transform, pixels, draws(20))
    assert torch.allclose(images, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255)
    assert labels.shape == (20,)


EACH = {
    "crop_padding": AugmentConfig(crop_padding=1),
    "flip": AugmentConfig(flip=True),
    "random_resized_crop": AugmentConfig(random_resized_crop=True),
    "randaugment": AugmentConfig(policy="randaugment"),
    "trivialaugment": AugmentConfig(policy="trivialaugment"),
    "cutout": AugmentConfig(cutout=3),
    "all": AugmentConfig(
        crop_padding=1, flip=True, random_resized_crop=True, policy="trivialaugment", cutout=3
    ),
}


@pytest.mark.parametrize("augment", EACH.values(), ids=EACH)
def test_an_image_is_changed_alike_whatever_other_images_are_with_it(augment):
    transform = ImageTransform(index((3, 12, 12)), None, augment, True, False)
    pixels = [picture(12, 12, seed) for seed in range(16)]
    whole, _ = batch(transform, pixels, draws(16))
    parts = [batch(transform, pixels[at : at + 4], draws(4, first=at))[0] for at in (0, 4, 8, 12)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, batch(transform, pixels, draws(16, seed=2))[0])


def test_what_happens_to_an_image_comes_in_the_order_of_crop_flip_cutout():
    augment = AugmentConfig(crop_padding=2, flip=True, cutout=3)
    transform = ImageTransform(index((3, 8, 8), (0.5, 0.25, 1.0)), None, augment, True, False)
    pixels, drawn = picture(8, 8), draws(40)
    images, _ = batch(transform, [pixels] * 40, drawn)
    tops, mirrored = drawn.of_rows("padded crop", 2), drawn.of_rows("flip", 1)
    for image, (y, x), turn, (cy, cx) in zip(images, tops, mirrored, drawn.of_rows("cutout", 2), strict=True):
        expected = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))[int(5 * y) :, int(5 * x) :][:8, :8]
        expected = (expected[:, ::-1] if turn < 0.5 else expected) / 255 - [0.5, 0.25, 1.0]
        top, left = int(8 * cy) - 1, int(8 * cx) - 1
        expected[max(0, top) : top + 3, max(0, left) : left + 3] = 0  # the mean, as nearly as pixels can
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 0.4), (0.4, 0.4)])
def test_mixed_labels_are_the_shares_of_the_images(mixup, cutmix):
    """Images of one value that spells their label: whatever the mixture, it is the expectation of its labels."""
    transform = ImageTransform(
        index((3, 10, 10)), None, AugmentConfig(mixup=mixup, cutmix=cutmix), True, False
    )
    labels = torch.arange(4)
    pixels = [np.full((10, 10, 3), label, np.uint8) for label in labels]
    kinds = set()
    for step in range(30):
        images, soft = batch(transform, pixels, Draws(1, 0, step, 0, 4), labels)
        assert soft.shape == (4, 4)
        assert torch.allclose(soft.sum(1), torch.ones(4))
        assert torch.allclose(soft @ torch.arange(4.0), 255 * images.mean((1, 2, 3)), atol=1e-4)
        assert (soft > 0).sum() <= 8
        kinds.add("cutmix" if torch.allclose(255 * images, (255 * images).round(), atol=1e-4) else "mixup")
    assert kinds == {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha}


def test_all_ranks_mix_a_global_batch_alike():
    transform = ImageTransform(index((3, 10, 10)), None, AugmentConfig(mixup=0.4), True, False)
    labels, pixels = torch.arange(4), [picture(10, 10, seed) for seed in range(4)]
    shares = {
        batch(transform, pixels, Draws(1, 0, 5, first, 4), labels)[1].max().item() for first in (0, 4, 8)
    }
    assert len(shares) == 1


def test_photographs_are_trained_on_random_parts_and_evaluated_on_their_centre():
    augment = AugmentConfig(random_resized_crop=True)
    image = picture(512, 600)
    trained = ImageTransform(index(None), 224, augment, True, False)
    crop = trained.crops(draws(1))[0]
    box = random_box(Size(512, 600), crop)
    for transform, part in (
        (trained, box),
        (ImageTransform(index(None), 224, augment, False, False), Box(76, 32, 448, 448)),
        (ImageTransform(index((3, 512, 600)), 224, augment, False, False), Box(76, 32, 448, 448)),
    ):
        cut = Image.fromarray(image).crop(
            (part.left, part.top, part.left + part.width, part.top + part.height)
        )
        expected = np.asarray(cut.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
        for given in (image, encoded(image)):
            assert np.abs(transform.prepare(given, crop) - expected).max() <= 1


def test_images_of_one_size_are_scaled_without_losing_the_border():
    transform = ImageTransform(index((3, 8, 8)), 32, PLAIN, False, False)
    image = picture(8, 8)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(transform.prepare(image, np.zeros(0)) - expected).max() <= 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_is_as_asked(channels_last):
    transform = ImageTransform(index((3, 6, 5)), None, PLAIN, True, channels_last)
    images, _ = batch(transform, [picture(6, 5)] * 4, draws(4))
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert images.is_contiguous() != channels_last


@pytest.mark.parametrize("encode", [False, True])
def test_an_image_that_is_not_as_the_index_says_is_an_error(encode):
    transform = ImageTransform(index((3, 6, 5)), None, PLAIN, True, False)
    image = encoded(picture(5, 6)) if encode else picture(5, 6)
    with pytest.raises(ImageError, match="the image is 6 x 5 pixels where the index says 5 x 6"):
        transform.prepare(image, np.zeros(0))


def test_raw_pixels_with_other_channels_than_the_index_says_are_an_error():
    transform = ImageTransform(index((3, 6, 5)), None, PLAIN, True, False)
    with pytest.raises(ImageError, match="1 channels where the index says 3"):
        transform.prepare(picture(6, 5)[..., :1], np.zeros(0))


def test_images_of_several_sizes_need_a_size():
    with pytest.raises(ShardError, match="differ in size: choose an image_size"):
        ImageTransform(index(None), None, PLAIN, True, False)
    with pytest.raises(ShardError, match="image_size is 0"):
        ImageTransform(index(None), 0, PLAIN, True, False)
