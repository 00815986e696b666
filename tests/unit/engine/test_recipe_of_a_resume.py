"""Which changes of the recipe a resumed run takes: those that change no result."""

import json

import pytest

from dist_prune.config import RunConfig, override
from dist_prune.engine.run import _difference
from dist_prune.monitor.records import RunFolder

CONFIG = RunConfig(name="test", data="none", model="resnet20", augment={"flip": True})


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.write_config({"config": CONFIG.model_dump(mode="json")})
    return run


def test_the_same_recipe_goes_on(folder):
    assert _difference(folder, CONFIG) is None


@pytest.mark.parametrize(
    "setting", ["workers=3", "bad_data=skip", "max_skipped=7", "cache.gigabytes=2", "log_every=1"]
)
def test_what_changes_no_result_may_change(folder, setting):
    assert _difference(folder, override(CONFIG, [setting])) is None


@pytest.mark.parametrize(
    "setting", ["lr=0.3", "augment.cutout=4", "augment.flip=false", "model_args.width=8"]
)
def test_what_changes_results_is_named(folder, setting):
    key = setting.split("=")[0].split(".")[0]
    assert f"was begun with {key}=" in _difference(folder, override(CONFIG, [setting]))


def test_a_run_begun_before_a_setting_existed_goes_on_with_its_default(folder):
    stored = json.loads(folder.config.read_text())
    del stored["config"]["augment"]["cutout"], stored["config"]["bad_data"], stored["config"]["nesterov"]
    folder.write_config(stored)
    assert _difference(folder, CONFIG) is None
    assert "augment=" in _difference(folder, override(CONFIG, ["augment.cutout=4"]))
    assert "nesterov=" in _difference(folder, override(CONFIG, ["nesterov=true"]))


def test_a_damaged_config_is_named_in_one_line(folder):
    folder.write_config({"config": {"name": 7, "model": []}})
    message = _difference(folder, CONFIG)
    assert "is not the config.json of a run" in message
    assert "\n" not in message
