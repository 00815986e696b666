"""The state that a run continues from: one type, equal on all ranks, independent of world size and ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn
from typing_extensions import TypedDict

from dist_prune.errors import UserError, first_problem
from dist_prune.measure.energy import Energy
from dist_prune.pruning.mask import Decision, restore_decision

# 1: phases had a "structure", and the state of budget and freezer lay in buffers of the first gate.
# 2: it did not say which recipe and DeepSpeed config made it.
FORMAT_VERSION = 3

OptimizerState = dict[str, dict[str, Tensor]]  # parameter name -> state name -> tensor
_STRICT = with_config(ConfigDict(extra="forbid"))


@dataclass
class ModelState:
    """The state of a module in training: full fp32 tensors on the CPU by name."""

    weights: dict[str, Tensor] = field(default_factory=dict)  # parameters and buffers
    optimizer_state: OptimizerState = field(default_factory=dict)  # SGD: momentum_buffer; AdamW: exp_avg, ..., step


@_STRICT
@dataclass
class Progress:
    """The position of a run."""

    phase: str = ""  # name of the phase in training
    epoch: int = 0  # epochs of the phase that are over
    batch: int = 0  # optimizer steps within the epoch
    step: int = 0  # optimizer steps over all phases
    seconds: float = 0.0  # of training so far, over all invocations
    skipped: int = 0  # samples that could not be read, over all ranks, counted each time that one was met
    skipped_in_epoch: int = 0
    max_abs_difference: float = 0.0  # largest between masked and sliced outputs at the ends of phases so far
    steps_skipped: int = 0  # steps whose loss or gradients were not finite
    bad_in_a_row: int = 0  # how many of them came last
    best_accuracy: float = -1.0  # on the test split, of the epoch that ended at ``best_step``
    best_step: int | None = None


@_STRICT
@dataclass
class SpentEnergy:
    """Energy that was spent."""

    joules: float | None = 0.0  # None from the moment on that a part was not measured
    ranks: int | None = None  # the fewest that had a sensor in any part, None before the first part
    sensors: dict[str, int] = field(default_factory=dict)  # number of each kind, in the latest part

    def add(self, measured: Energy) -> None:
        """Add a stretch of time."""
        # A sum with an unmeasured part is unknown, not smaller.
        known = self.joules is not None and measured.joules is not None
        self.joules = self.joules + measured.joules if known else None  # type: ignore[operator]
        self.ranks = measured.ranks if self.ranks is None else min(self.ranks, measured.ranks)
        self.sensors = measured.sensors

    def record(self) -> dict[str, Any]:
        """Return the energy as records of a run have it."""
        return {"energy_joules": self.joules, "energy_ranks": self.ranks or 0, "energy_sensors": self.sensors}


@_STRICT
class _Shards(TypedDict):
    fingerprint: str
    shard_lengths: dict[str, list[int]]


@_STRICT
class Origin(TypedDict):
    """What makes a run: a resume compares it, apart from what may differ."""

    recipe: dict[str, Any]
    ds_config: dict[str, Any]
    micro_batch: int
    versions: dict[str, str | None]  # of packages that can change results


@_STRICT
@dataclass
class FinishedPhase:
    """The outcome of a phase that is over, as far as a resume needs it."""

    epochs_run: int
    decision: dict[str, Any] | None  # as JSON, with its kind


@_STRICT
@dataclass
class _StateFile:
    """The content of state.json."""

    progress: Progress
    data: _Shards  # ``ImageData.identity``
    origin: Origin  # of the invocation that wrote it
    energy_run: SpentEnergy = field(default_factory=SpentEnergy)
    energy_epoch: SpentEnergy = field(default_factory=SpentEnergy)
    finished: dict[str, FinishedPhase] = field(default_factory=dict)  # the phases that are over, by name
    version: int = FORMAT_VERSION


_JSON = TypeAdapter(_StateFile)


@dataclass
class TrainState(_StateFile):
    """Everything that a run continues from."""

    model: ModelState = field(default_factory=ModelState)  # of the phase in training
    phase_state: dict[str, Tensor] = field(default_factory=dict)  # what it keeps beside (``Phase.extra_state``)
    # Of the decisions of finished phases, as PHASE/NAME: a bit per weight would be megabytes of JSON.
    decision_tensors: dict[str, Tensor] = field(default_factory=dict)

    def finish(self, phase: str, epochs_run: int, decision: Decision | None) -> None:
        """Add the outcome of a phase that is over."""
        described = None if decision is None else {"kind": decision.kind, **decision.as_dict()}
        self.finished[phase] = FinishedPhase(epochs_run, described)
        if decision is not None:
            self.decision_tensors |= {f"{phase}/{name}": tensor for name, tensor in decision.tensors().items()}

    def decision_of(self, phase: str) -> Decision | None:
        """Return the decision of a finished phase; raises UserError if what was stored describes none."""
        described = self.finished[phase].decision
        return None if described is None else restore_decision(described, _below(f"{phase}/", self.decision_tensors))

    def as_json(self) -> dict[str, Any]:
        """Return all but the tensors, as plain JSON data."""
        return _JSON.dump_python(self, mode="json")

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors beside the model's: ``state/NAME`` of the phase, ``decision/PHASE/NAME``."""
        parts = {"state": self.phase_state, "decision": self.decision_tensors}
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    @staticmethod
    def restore(data: Any, tensors: Mapping[str, Tensor], model: ModelState) -> TrainState:
        """Return the state that ``as_json`` and ``tensors`` described; raises UserError if they describe none."""
        # Before anything else is checked: fields of another version would only look damaged.
        if isinstance(data, dict) and data.get("version") != FORMAT_VERSION:
            raise UserError(
                f"its format is version {data.get('version', 1)}, this program reads {FORMAT_VERSION}: continue "
                "with the dist_prune that wrote it (see versions in config.json), or begin a new run"
            )
        try:
            found = _JSON.validate_python(data)
        except ValidationError as error:
            where, problem = first_problem(error)
            raise UserError(f"its state.json is not that of a run: '{where}': {problem}") from error
        state = TrainState(**vars(found), model=model)
        state.phase_state, state.decision_tensors = _below("state/", tensors), _below("decision/", tensors)
        # Now, rather than when the run has begun.
        for phase in state.finished:
            state.decision_of(phase)
        return state

    def check_fits(self, module: nn.Module) -> None:
        """Raise UserError if the weights are not those of ``module``, tensor by tensor."""
        # Compared here, since load_state_dict reports every tensor at once, on many lines.
        theirs = {name: tuple(tensor.shape) for name, tensor in self.model.weights.items()}
        ours = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        other = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        if other:
            have, needs = theirs.get(other[0], "nothing"), ours.get(other[0], "nothing")
            raise UserError(
                "the checkpoint is not of this network, or of another version of this program: for "
                f"{other[0]} it has {have}, where {needs} is needed"
            )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
