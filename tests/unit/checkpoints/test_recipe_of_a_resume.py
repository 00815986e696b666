"""Which changes of recipe and data a resumed run takes: those that change no result."""

import dataclasses
import json
from typing import Any

import pytest

from data_tools.index import ShardIndex, ShardSplit
from dist_prune.checkpoints.restore import other_data, other_ds_config, other_recipe
from dist_prune.config import RunConfig, override
from dist_prune.data import ImageData
from dist_prune.monitor.records import RunFolder

CONFIG = RunConfig(name="test", data="none", model="resnet20", augment={"flip": True})
BEFORE = CONFIG.model_dump(mode="json")


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def test_the_same_recipe_goes_on(folder):
    assert other_recipe(folder, BEFORE, CONFIG) is None


@pytest.mark.parametrize(
    "setting",
    ["data=/elsewhere/shards", "workers=3", "bad_data=skip", "max_skipped=7", "cache.gigabytes=2", "log_every=1"],
)
def test_what_changes_no_result_may_change(folder, setting):
    assert other_recipe(folder, BEFORE, override(CONFIG, [setting])) is None


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
    message = other_recipe(folder, BEFORE, override(CONFIG, [setting]))
    assert f"was started with {told}" in message
    assert "{" not in message


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default(folder):
    before = json.loads(json.dumps(BEFORE))
    del before["augment"]["cutout"], before["bad_data"], before["nesterov"]
    assert other_recipe(folder, before, CONFIG) is None
    assert "augment.cutout=" in other_recipe(folder, before, override(CONFIG, ["augment.cutout=4"]))
    assert "nesterov=" in other_recipe(folder, before, override(CONFIG, ["nesterov=true"]))


def test_a_damaged_recipe_is_named_in_one_line(folder):
    message = other_recipe(folder, {"name": 7, "model": []}, CONFIG)
    assert "are not of a run of this program" in message
    assert "\n" not in message


BF16 = {"zero_optimization": {"stage": 2}, "torch_autocast": {"enabled": True}, "gradient_clipping": 1.0}


@pytest.mark.parametrize(
    "changes",
    [{"zero_optimization": {"stage": 3}}, {"train_micro_batch_size_per_gpu": 8}, {"wall_clock_breakdown": True}],
)
def test_keys_of_speed_memory_and_messages_may_change(folder, changes):
    assert other_ds_config(folder, BF16, {**BF16, **changes}) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gradient_clipping": 0.1}, "gradient_clipping=1.0, not 0.1;"),
        ({"torch_autocast": {"enabled": False}}, "torch_autocast.enabled=true, not false;"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, 'torch_autocast.dtype=nothing, not "float16";'),
        ({"fp16": {"enabled": True}}, "fp16.enabled=nothing, not true;"),
        ({"prescale_gradients": True}, "prescale_gradients=nothing, not true;"),
    ],
)
def test_the_key_that_changes_losses_is_named_with_both_values(folder, changes, told):
    assert f"was started with {told}" in other_ds_config(folder, BF16, {**BF16, **changes})
    assert "gradient_clipping=1.0, not nothing;" in other_ds_config(folder, BF16, {"torch_autocast": {"enabled": True}})


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
        (images(30, 20, fingerprint="0123456789 9876543210"), "fingerprint 01234567 and 98765432 now"),
    ],
)
def test_other_shards_are_told_in_one_line(folder, now, told):
    message = other_data(folder, CONFIG, recorded(images(30, 20)), now)
    assert f"{folder.path} was started with other shards than none has now" in message
    assert "50 train images in 2 shards, fingerprint 01234567 then" in message
    assert told in message
    assert "\n" not in message
