"""Which changes of recipe and data a resumed run takes: those that change no result."""

import dataclasses
import json
from typing import Any

import pytest

from data_tools.index import ShardIndex, ShardSplit
from dist_prune.checkpoints.restore import other_data, other_recipe
from dist_prune.config import RunConfig, override
from dist_prune.data import ImageData
from dist_prune.monitor.records import RunFolder

CONFIG = RunConfig(name="test", data="none", model="resnet20", augment={"flip": True})


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.write_json(run.config, {"config": CONFIG.model_dump(mode="json")})
    return run


def test_the_same_recipe_goes_on(folder):
    assert other_recipe(folder, CONFIG) is None


@pytest.mark.parametrize(
    "setting",
    ["data=/elsewhere/shards", "workers=3", "bad_data=skip", "max_skipped=7", "cache.gigabytes=2", "log_every=1"],
)
def test_what_changes_no_result_may_change(folder, setting):
    assert other_recipe(folder, override(CONFIG, [setting])) is None


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("lr=0.3", "lr=0.1, not 0.3;"),
        ("augment.cutout=4", "augment.cutout=0, not 4;"),
        ("augment.flip=false", "augment.flip=true, not false;"),
        ("polarization=2", 'polarization.kind=nothing, not "constant";'),
        ("model_args.width=8", "model_args.width=nothing, not 8;"),
    ],
)
def test_the_field_that_changes_results_is_named_with_both_values(folder, setting, told):
    message = other_recipe(folder, override(CONFIG, [setting]))
    assert f"was started with {told}" in message
    assert "{" not in message


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default(folder):
    stored = json.loads(folder.config.read_text())
    del stored["config"]["augment"]["cutout"], stored["config"]["bad_data"], stored["config"]["nesterov"]
    folder.write_json(folder.config, stored)
    assert other_recipe(folder, CONFIG) is None
    assert "augment.cutout=" in other_recipe(folder, override(CONFIG, ["augment.cutout=4"]))
    assert "nesterov=" in other_recipe(folder, override(CONFIG, ["nesterov=true"]))


def test_a_damaged_config_is_named_in_one_line(folder):
    folder.write_json(folder.config, {"config": {"name": 7, "model": []}})
    message = other_recipe(folder, CONFIG)
    assert "is not the config.json of a run" in message
    assert "\n" not in message


def images(*lengths: int, fingerprint: str = "0123456789") -> ImageData:
    files = tuple(f"toy-{number}.tar" for number in range(len(lengths)))
    train = ShardSplit.model_construct(filenames=files, shard_lengths=lengths)
    index = ShardIndex.model_construct(fingerprint=fingerprint, image_shape=(1, 8, 8), splits={"train": train})
    return ImageData(index, store=None)


def recorded(data: ImageData) -> dict[str, Any]:
    """The identity of these data, as a checkpoint gives it back."""
    return json.loads(json.dumps(data.identity()))


def test_the_same_shards_go_on_wherever_they_are_now(folder):
    now = images(30, 20)
    moved = dataclasses.replace(now, index=now.index.model_copy(update={"root": "elsewhere"}))
    assert other_data(folder, CONFIG, recorded(now), moved) is None


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (images(30, 21), "51 train images in 2 shards, fingerprint 01234567 now"),
        (images(50), "50 train images in 1 shards, fingerprint 01234567 now"),
        (images(20, 30), "50 train images in 2 shards, fingerprint 01234567 now"),
        (images(30, 20, fingerprint="9876543210"), "50 train images in 2 shards, fingerprint 98765432 now"),
    ],
)
def test_other_shards_are_told_in_one_line(folder, now, told):
    message = other_data(folder, CONFIG, recorded(images(30, 20)), now)
    assert f"{folder.path} was started with other shards than none has now" in message
    assert "50 train images in 2 shards, fingerprint 01234567 then" in message
    assert told in message
    assert "\n" not in message
