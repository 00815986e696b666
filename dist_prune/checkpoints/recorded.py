"""What a run folder says about its run, checked before anything goes by it: it may be damaged or untrusted."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import nn

from dist_prune.checkpoints.format import Checkpoint
from dist_prune.config import RunConfig, read_config
from dist_prune.errors import UserError, first_problem
from dist_prune.monitor.records import RunFolder
from dist_prune.training.context import Progress


class _Spent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    joules: float | None
    ranks: int | None
    sensors: dict[str, int]


class _Energy(BaseModel):
    run: _Spent
    epoch: _Spent


class _Data(BaseModel):
    fingerprint: str
    shard_lengths: dict[str, list[int]]


class _State(BaseModel):
    model_config = ConfigDict(strict=True)

    phase: str
    structures: dict[str, dict[str, Any]]
    position: dict[str, Any]
    data: _Data | None = None  # runs begun earlier did not record these
    energy: _Energy | None = None


_POSITION = TypeAdapter(Progress)


def config_of(run: RunFolder) -> RunConfig:
    """The recipe of a run folder; settings that are newer than the run have their defaults.

    Raises UserError where there is none.
    """
    try:
        return read_config(json.loads(run.config.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        raise UserError(f"{run.config} is not the config.json of a run: {error}") from error


def data_of(run: RunFolder) -> str:
    """Where a run's data were, for ``open_data``.

    Raises UserError where only a command would bring them: none is run but those that the user types.
    """
    try:
        data = config_of(run).data
    except UserError as error:
        raise UserError(f"{error}; name the data with --data") from error
    if data.startswith("pipe:"):
        raise UserError(
            f"{run.path} read its data by a command; if you trust it, give it yourself: --data '{data}'"
        )
    return data


def check_state(checkpoint: Checkpoint) -> Checkpoint:
    """Return ``checkpoint`` if its state says what a run goes on by; raises UserError otherwise."""
    state = checkpoint.state
    try:
        _State.model_validate(state)
        _POSITION.validate_python(state["position"])
    except ValidationError as error:
        where, problem = first_problem(error)
        raise UserError(
            f"the state.json of the checkpoint is not that of a run: '{where}': {problem}"
        ) from error
    return checkpoint


def check_weights(checkpoint: Checkpoint, module: nn.Module) -> None:
    """Raise UserError if the weights of a checkpoint are not those of ``module``, tensor by tensor."""
    theirs = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    other = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if other:
        have, needs = theirs.get(other[0], "nothing"), ours.get(other[0], "nothing")
        raise UserError(
            f"the checkpoint is not of this network, or of another version of this program: for {other[0]} it has "
            f"{have}, where {needs} is needed"
        )
