"""Evaluating a sliced checkpoint prepares images as the run did that wrote it."""

import json

import pytest
import torch
from PIL import Image

from data_tools import ShardError, make_shards
from dist_prune import build_model
from dist_prune.config import AugmentConfig
from dist_prune.data import open_data
from dist_prune.offline import open_for_sliced
from dist_prune.pruning.sliced_checkpoint import read_sliced_config, save_sliced


@pytest.fixture
def checkpoint(tmp_path, data_folder):
    """Makes a sliced checkpoint of a network that was trained on ``images``; a change of None removes a key."""

    def make(images, **changes):
        model = build_model("resnet8", num_classes=10, in_channels=1, width=4)
        folder = save_sliced(
            model,
            tmp_path / "sliced",
            input_shape=images.input_shape,
            resized_side=images.resized_side,
            interpolation=images.interpolation,
            normalization=images.normalization,
        )
        config = {key: value for key, value in {**read_sliced_config(folder), **changes}.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def first(data):
    return next(iter(data.eval_batches("test", batch_size=64, rank=0, world_size=1)))


def first_images(data):
    return first(data)[0]


@pytest.mark.parametrize(("random_resized_crop", "side"), [(True, 18), (False, None)])
def test_images_are_scaled_with_a_margin_only_where_training_cut_parts_out_of_them(
    checkpoint, random_resized_crop, side
):
    augment = AugmentConfig(random_resized_crop=random_resized_crop)
    trained_on = open_data("digits", image_size=16, augment=augment)
    assert trained_on.resized_side == side
    again, _ = open_for_sliced(checkpoint(trained_on), "digits")
    assert torch.equal(first_images(again), first_images(trained_on))
    other = open_data("digits", image_size=16, augment=AugmentConfig(random_resized_crop=not random_resized_crop))
    assert not torch.equal(first_images(again), first_images(other))


def test_checkpoints_from_before_the_margin_was_recorded_take_images_as_a_whole(checkpoint):
    folder = checkpoint(open_data("digits"), resized_side=None)
    assert "resized_side" not in (folder / "config.json").read_text()
    assert open_for_sliced(folder, "digits")[0].resized_side is None


def test_images_are_normalized_and_numbered_as_those_that_the_network_was_trained_on(checkpoint):
    data = open_data("digits")
    folder = checkpoint(data, normalization={"mean": [0.5], "std": [0.25]})
    (mean,), (std,) = data.normalization["mean"], data.normalization["std"]
    images, _ = open_for_sliced(folder, "digits")
    assert torch.allclose(first_images(images), (first_images(data) * std + mean - 0.5) / 0.25, atol=1e-6)
    # Numbers are those of its classes, whatever it calls them.
    named, _ = open_for_sliced(checkpoint(data, class_names=list("abcdefghij")), "digits")
    assert torch.equal(first(named)[1], first(data)[1])
    with pytest.raises(ShardError, match="has class '0', unlike what the network was trained on"):
        open_for_sliced(checkpoint(data, class_names=list("abc")), "digits")


def test_images_that_are_not_square_are_evaluated_as_they_are(checkpoint, tmp_path):
    for split in ("train", "test"):
        for number in range(4):
            path = tmp_path / "images" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (12, 10), 60 * number).save(path)
    make_shards("imagefolder", tmp_path / "images", tmp_path / "shards")
    trained_on = open_data(str(tmp_path / "shards"))
    again, _ = open_for_sliced(checkpoint(trained_on), str(tmp_path / "shards"))
    assert first_images(again).shape == (4, 1, 10, 12)
    assert torch.equal(first_images(again), first_images(trained_on))


def test_size_share_and_interpolation_of_the_run_are_those_of_its_evaluation(checkpoint):
    options = {"eval_size": 21, "eval_crop": 0.77, "interpolation": "bicubic"}
    trained_on = open_data("digits", image_size=16, **options)
    again, _ = open_for_sliced(checkpoint(trained_on), "digits")
    assert torch.equal(first_images(again), first_images(trained_on))
    for change in ({"eval_size": 22}, {"eval_crop": 1.0}, {"interpolation": "bilinear"}):
        other = open_data("digits", image_size=16, **options | change)
        assert not torch.equal(first_images(again), first_images(other))
