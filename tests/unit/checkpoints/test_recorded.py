"""What a run folder says is checked before anything goes by it."""

from __future__ import annotations

import shlex

import pytest

from dist_prune.checkpoints.restore import config_of, config_with_data
from dist_prune.errors import UserError
from dist_prune.monitor.records import RunFolder
from dist_prune.recipes import recipe


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def record(run: RunFolder, **changes) -> None:
    run.write_json(run.config, {"config": {**recipe("digits").model_dump(mode="json"), **changes}})


@pytest.mark.parametrize(
    "data", ["SHARDS", "/a/b", "file:///a/b", "s3://b/x", "https://host/x?key=1", "file://pipe:touch x"]
)
def test_recorded_places_are_found(run, data):
    record(run, data=data)
    assert config_with_data(run).data.location == data


@pytest.mark.parametrize(
    "data",
    [
        "pipe:touch x; cat x/_info.json",
        "reference://x::http://host/refs",
        "simplecache::s3://bucket/x",
        "file://x::http://host/refs",
        "github://owner:repository@main/x",
        "it's://x",
    ],
)
def test_a_recorded_command_or_chain_of_urls_is_not_followed(run, data):
    record(run, data=data, allow_pipes=True)
    with pytest.raises(
        UserError, match=r"read its data by a command or .*; if you trust it, give it yourself"
    ) as refused:
        config_with_data(run)
    assert shlex.split(str(refused.value).partition("--data ")[2]) == [data]


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"gates": []}, {"nobody": "knows"}])
def test_a_config_json_that_is_none_is_refused_in_one_line(run, changes):
    record(run, **changes)
    with pytest.raises(
        UserError, match=r"config\.json is not the config\.json of a run: (unknown )?recipe key"
    ) as refused:
        config_of(run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "[]", '{"config": []}', "null", "[" * 100_000])
def test_anything_else_in_the_place_of_config_json_is_refused(run, content):
    run.config.write_text(content)
    with pytest.raises(UserError, match=r"is not the config\.json of a run"):
        config_of(run)


def test_a_recorded_cache_folder_is_used_only_where_a_cache_is_already(run, tmp_path):
    folder = tmp_path / "cache"
    record(run, cache={"folder": str(folder)})
    assert config_of(run).cache.folder is None
    folder.mkdir()
    (folder / "authorized.tar").touch()
    assert config_of(run).cache.folder is None
    (folder / f"{'0' * 64}.tar").touch()
    assert config_of(run).cache.folder == str(folder)
