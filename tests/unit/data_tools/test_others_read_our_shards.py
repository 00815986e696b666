"""Shards of encoded images are read by webdataset and timm as they are: every sample, with its label."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import webdataset
from shard_helpers import write_image
from timm.data.readers import create_reader

from data_tools import make_shards
from dist_prune.data import open_data


@pytest.fixture(params=["digits", "imagefolder"])
def folder(request, tmp_path):
    """Shards of arrays (as PNG), or of JPEG files."""
    if request.param == "imagefolder":
        for number in range(30):
            split = "train" if number < 24 else "test"
            write_image(tmp_path / "images" / split / "abc"[number % 3] / f"{number}.jpg", number)
        make_shards("imagefolder", tmp_path / "images", tmp_path / "shards", samples_per_shard=10)
    else:
        make_shards("digits", None, tmp_path / "shards", format="files")
    return tmp_path / "shards"


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_sample_is_read_with_its_label_by_webdataset_and_timm(folder, split):
    data = open_data(str(folder), workers=0)
    batches = list(data.eval_batches(split, batch_size=64, rank=0, world_size=1))
    expected = [label for _, labels in batches for label in labels.tolist()]
    assert len(expected) == data.num_samples(split)

    shards = [str(folder / name) for name in data.index.split(split).filenames]
    pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png;jpg", "cls")
    read = list(pipeline)
    assert [label for _, label in read] == expected
    assert {np.asarray(image).shape[:2] for image, _ in read} == {data.input_shape[1:]}

    reader = create_reader("wds/", str(folder), split=split, is_training=False, batch_size=1)
    assert Counter(label for _, label in reader) == Counter(expected)
    assert len(reader) == len(expected)
