"""Images are scaled as torchvision does it, by the size, share and interpolation that the recipe names."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from made_shards import encoded, make
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

from data_tools.index import ShardIndex
from data_tools.store import open_store
from dist_prune.config import AugmentConfig
from dist_prune.config.schedules import Ramp, Steps
from dist_prune.data import ImageData
from dist_prune.data.batch_rng import BatchRng
from dist_prune.data.transforms import ImageTransform, Size, decode_part

ROUNDING = {"bilinear": 1, "bicubic": 2}  # of two passes over the image
PLAIN, CROPPED = AugmentConfig(), AugmentConfig(random_resized_crop=True, flip=True)


def index(shape) -> ShardIndex:
    return ShardIndex.model_construct(
        name="toy", class_names=("a", "b"), image_shape=shape, mean=(0.0,) * 3, std=(1.0,) * 3, splits={}
    )


def photograph(width: int, height: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.RandomState(seed).randint(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("share", [None, 1.0, 0.7, 0.6])  # whose center begins at a whole pixel
@pytest.mark.parametrize(("width", "height"), [(480, 320), (320, 480)])
def test_evaluation_scales_and_cuts_out_the_center_as_torchvision_does(width, height, share, interpolation):
    image = photograph(width, height)
    for shape, augment in ((None, PLAIN), ((3, height, width), CROPPED)):
        ours = ImageTransform(index(shape), 168, augment, False, eval_crop=share, interpolation=interpolation)
        assert ours.resized_side == round(168 / (share or 0.875))
        mode = InterpolationMode(interpolation)
        theirs = Compose([Resize(ours.resized_side, mode, antialias=True), CenterCrop(168)])(Image.fromarray(image))
        difference = np.abs(ours.prepare(encoded(image), np.zeros(0)) - np.asarray(theirs).astype(int))
        # Ours scales the center alone, and does not smooth its border with what lies outside.
        assert difference[3:-3, 3:-3].max() <= ROUNDING[interpolation]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_of_one_size_are_scaled_whole_unless_a_share_is_given(interpolation):
    image = photograph(64, 64)
    for side in (40, 96):
        expected = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling[interpolation.upper()]))
        for share in (None, 1.0):
            ours = ImageTransform(index((3, 64, 64)), side, PLAIN, False, eval_crop=share, interpolation=interpolation)
            assert (
                np.abs(ours.prepare(encoded(image), np.zeros(0)) - expected.astype(int)).max()
                <= ROUNDING[interpolation]
            )
    center = ImageTransform(index((3, 64, 64)), 32, PLAIN, False, eval_crop=0.5)
    assert np.array_equal(center.prepare(encoded(image), np.zeros(0)), image[16:48, 16:48])
    whole = ImageTransform(index((3, 64, 64)), 64, PLAIN, True, eval_crop=0.5)
    assert np.array_equal(whole.prepare(encoded(image), np.zeros(0)), image), "training sees all of it"


def test_random_parts_are_scaled_by_the_interpolation_of_the_recipe():
    image = photograph(320, 240)
    crop = ImageTransform(index(None), 64, CROPPED, True).crops(BatchRng(1, 0, 0, 0, 1))[0]
    found = {}
    for name in ("bilinear", "bicubic"):
        transform = ImageTransform(index(None), 64, CROPPED, True, interpolation=name)
        found[name] = transform.prepare(encoded(image), crop)
        box = transform._box(Size(240, 320), crop)
        assert np.array_equal(found[name], decode_part(encoded(image), 3, Size(64, 64), lambda _, box=box: box, name))
        cut = Image.open(io.BytesIO(encoded(image))).crop(
            (box.left, box.top, box.left + box.width, box.top + box.height)
        )
        expected = np.asarray(cut.resize((64, 64), Image.Resampling[name.upper()])).astype(int)
        assert np.abs(found[name] - expected).max() <= ROUNDING[name]
    assert not np.array_equal(*found.values())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> ImageData:
    folder = tmp_path_factory.mktemp("sizes") / "shards"
    images = [photograph(48 + number % 5, 40, number) for number in range(60)]
    labels = np.arange(60) % 2
    splits = {"train": (images[:48], labels[:48], (20, 28)), "test": (images[48:], labels[48:], (12,))}
    made = make(folder, splits, same_shape=False)
    return ImageData(made, open_store(folder), seed=1, workers=0, image_size=16, augment=CROPPED)


GROWING = Steps(values=((0, 12), (2, 16)))


def epoch_of(data: ImageData, epoch: int, world_size: int = 1, **options) -> list[torch.Tensor]:
    """The images of each global batch."""
    sizes = {"micro_batch": 8 // world_size, "global_batch": 8, "world_size": world_size}
    ranks = [list(data.train_batches(epoch, rank=rank, **sizes, **options)) for rank in range(world_size)]
    return [torch.cat([images for images, _ in step]) for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("sides", [GROWING, Ramp(start=10, end=16, from_epoch=1, to_epoch=3)])
def test_every_epoch_has_its_size_for_all_ranks_workers_and_resumes(photographs, sides):
    data = dataclasses.replace(photographs, image_size=sides, eval_size=20, eval_crop=0.8, interpolation="bicubic")
    expected_sides = [12, 12, 16, 16] if sides is GROWING else [10, 10, 13, 16]
    for epoch, side in enumerate(expected_sides):
        assert data.train_shape(epoch) == (3, side, side)
        straight = epoch_of(data, epoch)
        assert {images.shape for images in straight} == {(8, 3, side, side)}
        constant = epoch_of(dataclasses.replace(data, image_size=side), epoch)
        for other in (constant, epoch_of(data, epoch, 2), epoch_of(dataclasses.replace(data, workers=1), epoch)):
            assert all(map(torch.equal, straight, other))
        resumed = epoch_of(data, epoch, 4, skip_steps=3)
        assert len(resumed) == 3
        assert all(map(torch.equal, straight[3:], resumed))
    assert data.input_shape == (3, 20, 20)
    assert data.resized_side == 25


def test_evaluation_has_its_own_size_or_the_last_of_training(photographs):
    for sides, eval_size, expected in (
        (16, 24, 24),
        (GROWING, None, 16),
        (Ramp(start=8, end=18, to_epoch=9), None, 18),
    ):
        data = dataclasses.replace(photographs, image_size=sides, eval_size=eval_size)
        assert data.input_shape == (3, expected, expected)
        for split in ("test", "train"):
            batches = data.eval_batches(split, batch_size=5, rank=0, world_size=1)
            assert {images.shape[1:] for images, _ in batches} == {(3, expected, expected)}
