"""The pixels of a batch are what the images and the augmentation say; nothing random comes from elsewhere."""

import numpy as np
import pytest
from made_shards import encoded
from PIL import Image

from data_tools import ShardError
from data_tools.images import ImageError
from data_tools.index import ShardIndex
from dist_prune.config import AugmentConfig
from dist_prune.data.batch_rng import BatchRng
from dist_prune.data.transforms import Box, ImageTransform, Size, random_box

PLAIN = AugmentConfig()


def index(shape, mean=(0.0,) * 3) -> ShardIndex:
    return ShardIndex.model_construct(
        name="toy", class_names=tuple("abcd"), image_shape=shape, mean=mean, std=(1.0,) * 3, splits={}
    )


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


def draws(rows: int, seed: int = 1, first: int = 0) -> BatchRng:
    return BatchRng(seed, 0, 0, first, rows)


def batch(transform: ImageTransform, images: list, drawn: BatchRng) -> np.ndarray:
    crops = transform.crops(drawn)
    pixels = np.stack([transform.prepare(encoded(image), crop) for image, crop in zip(images, crops, strict=True)])
    return transform.augment(pixels.copy(), drawn)


def test_without_augmentation_pixels_stay_as_they_are():
    transform = ImageTransform(index((3, 5, 4)), None, PLAIN, True)
    pixels = [picture(5, 4, seed) for seed in range(3)]
    found = batch(transform, pixels, draws(3))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.stack(pixels))


def test_evaluation_ignores_the_augmentation():
    augment = AugmentConfig(crop_padding=2, flip=True, cutout=3, policy="randaugment")
    pixels = [picture(6, 6, seed) for seed in range(20)]
    found = batch(ImageTransform(index((3, 6, 6)), None, augment, False), pixels, draws(20))
    assert np.array_equal(found, np.stack(pixels))


EACH = {
    "crop_padding": AugmentConfig(crop_padding=1),
    "flip": AugmentConfig(flip=True),
    "random_resized_crop": AugmentConfig(random_resized_crop=True),
    "randaugment": AugmentConfig(policy="randaugment"),
    "trivialaugment": AugmentConfig(policy="trivialaugment"),
    "cutout": AugmentConfig(cutout=3),
    "erasing": AugmentConfig(erasing=0.5),
    "all": AugmentConfig(crop_padding=1, flip=True, random_resized_crop=True, policy="trivialaugment", cutout=3),
}


@pytest.mark.parametrize("augment", EACH.values(), ids=EACH)
def test_an_image_is_changed_alike_whatever_other_images_are_with_it(augment):
    transform = ImageTransform(index((3, 12, 12)), None, augment, True)
    pixels = [picture(12, 12, seed) for seed in range(16)]
    whole = batch(transform, pixels, draws(16))
    parts = [batch(transform, pixels[at : at + 4], draws(4, first=at)) for at in (0, 4, 8, 12)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, batch(transform, pixels, draws(16, seed=2)))


def test_what_happens_to_an_image_comes_in_the_order_of_crop_flip_cutout():
    augment = AugmentConfig(crop_padding=2, flip=True, cutout=3)
    transform = ImageTransform(index((3, 8, 8), (0.5, 0.25, 1.0)), None, augment, True)
    pixels, drawn = picture(8, 8), draws(40)
    images = batch(transform, [pixels] * 40, drawn)
    tops, mirrored = drawn.of_rows("padded crop", 2), drawn.of_rows("flip", 1)
    for image, (y, x), turn, (cy, cx) in zip(images, tops, mirrored, drawn.of_rows("cutout", 2), strict=True):
        expected = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))[int(5 * y) :, int(5 * x) :][:8, :8]
        expected = (expected[:, ::-1] if turn < 0.5 else expected).copy()
        top, left = int(8 * cy) - 1, int(8 * cx) - 1
        expected[max(0, top) : top + 3, max(0, left) : left + 3] = (128, 64, 255)  # the mean, as pixels can
        assert np.array_equal(image, expected)


def test_erasing_blanks_a_rectangle_of_so_many_images_with_the_areas_of_torchvision():
    transform = ImageTransform(index((3, 40, 50), (0.5, 0.25, 1.0)), None, AugmentConfig(erasing=0.25), True)
    white = np.full((40, 50, 3), 254, np.uint8)
    areas = []
    for image in batch(transform, [white] * 2000, draws(2000)):
        rows, columns = np.nonzero((image != 254).any(-1))
        if len(rows):
            blank = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (blank == (128, 64, 255)).all()
            areas.append(blank.shape[0] * blank.shape[1] / 2000)
    assert abs(len(areas) / 2000 - 0.25) < 0.04
    assert 0.015 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.35
    assert abs(np.mean(areas) - 0.17) < 0.02


def test_erasing_leaves_out_what_fits_nowhere():
    transform = ImageTransform(index((3, 1, 60)), None, AugmentConfig(erasing=1.0), True)
    line = np.full((1, 60, 3), 254, np.uint8)
    blank = [(image != 254).any(-1).mean() for image in batch(transform, [line] * 300, draws(300))]
    assert max(blank) < 0.34


def test_crop_area_bounds_the_part_that_is_cut_out():
    transform = ImageTransform(index(None), 32, AugmentConfig(random_resized_crop=True, crop_area=0.5), True)
    areas = []
    for crop in transform.crops(draws(500)):
        box = transform._box(Size(300, 400), crop)
        areas.append(box.width * box.height / 120_000)
    assert 0.49 < min(areas) < 0.55
    assert max(areas) > 0.9


def test_photographs_are_trained_on_random_parts_and_evaluated_on_their_center():
    augment = AugmentConfig(random_resized_crop=True)
    image = picture(512, 600)
    trained = ImageTransform(index(None), 224, augment, True)
    crop = trained.crops(draws(1))[0]
    box = random_box(Size(512, 600), crop)
    for transform, part in (
        (trained, box),
        (ImageTransform(index(None), 224, augment, False), Box(76, 32, 448, 448)),
        (ImageTransform(index((3, 512, 600)), 224, augment, False), Box(76, 32, 448, 448)),
    ):
        cut = Image.fromarray(image).crop((part.left, part.top, part.left + part.width, part.top + part.height))
        expected = np.asarray(cut.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(transform.prepare(encoded(image), crop) - expected).max() <= 1


def test_images_of_one_size_are_scaled_without_losing_the_border():
    transform = ImageTransform(index((3, 8, 8)), 32, PLAIN, False)
    image = picture(8, 8)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(transform.prepare(encoded(image), np.zeros(0)) - expected).max() <= 1


def test_an_image_that_is_not_as_the_index_says_is_an_error():
    transform = ImageTransform(index((3, 6, 5)), None, PLAIN, True)
    with pytest.raises(ImageError, match="the image is 6 x 5 pixels where the index says 5 x 6"):
        transform.prepare(encoded(picture(5, 6)), np.zeros(0))


def test_images_of_several_sizes_need_a_size():
    with pytest.raises(ShardError, match="differ in size: choose an image_size"):
        ImageTransform(index(None), None, PLAIN, True)
    with pytest.raises(ShardError, match="image_size is 0"):
        ImageTransform(index(None), 0, PLAIN, True)
