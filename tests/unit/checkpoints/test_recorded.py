"""What a run folder says is checked before anything goes by it."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from dist_prune.checkpoints.format import Checkpoint
from dist_prune.checkpoints.recorded import check_state, check_weights, config_of, data_of
from dist_prune.errors import UserError
from dist_prune.monitor.records import RunFolder
from dist_prune.recipes import recipe
from dist_prune.training.context import Progress

STATE = {
    "phase": "gated",
    "structures": {"gated": {}},
    "position": asdict(Progress(phase="gated", step=3)),
}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def record(run: RunFolder, **changes) -> None:
    run.write_config({"config": {**recipe("digits").model_dump(mode="json"), **changes}})


def test_a_recorded_command_is_not_run_and_recorded_places_are_found(run):
    record(run, data="SHARDS")
    assert data_of(run) == "SHARDS"
    record(run, data="pipe:touch x")
    with pytest.raises(UserError, match="read its data by a command; if you trust it, give it yourself"):
        data_of(run)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": 3},
        {"structures": []},
        {"position": {**STATE["position"], "step": "x"}},
        {"position": {**STATE["position"], "more": 1}},
        {"data": {"fingerprint": 1, "shard_lengths": {}}},
    ],
)
def test_a_state_that_no_run_can_go_on_by_is_refused(changes):
    assert check_state(Checkpoint({}, {}, json.loads(json.dumps(STATE)))) is not None
    with pytest.raises(UserError, match=r"the state\.json of the checkpoint is not that of a run: '"):
        check_state(Checkpoint({}, {}, {**STATE, **changes}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("bias"), r"for bias it has nothing, where \(2,\) is needed"),
        (
            lambda weights: weights.update(more=torch.zeros(1)),
            r"for more it has \(1,\), where nothing is needed",
        ),
        (lambda weights: weights.update(weight=torch.zeros(2, 4)), r"has \(2, 4\), where \(2, 3\) is needed"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_first_tensor_that_differs(change, said):
    network = nn.Linear(3, 2)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    check_weights(Checkpoint(weights, {}, STATE), network)
    change(weights)
    with pytest.raises(UserError, match=said):
        check_weights(Checkpoint(weights, {}, STATE), network)
