"""The state that a run continues from: one type, equal on all ranks, independent of world size and ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn

from dist_prune.errors import UserError, first_problem
from dist_prune.measure.energy import Energy
from dist_prune.pruning.decision import Decision, restore_decision

# 1: phases had a "structure", and the state of budget and freezer lay in buffers of the first gate.
FORMAT_VERSION = 2

OptimizerState = dict[str, dict[str, Tensor]]  # parameter name -> state name -> tensor
_STRICT = with_config(ConfigDict(extra="forbid"))


@dataclass
class ModelState:
    """The state of a module in training: full fp32 tensors on the CPU by name.

    weights: parameters and buffers.
    optimizer_state: of the parameters that have one (SGD: momentum_buffer; AdamW: exp_avg, exp_avg_sq, step).
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer_state: OptimizerState = field(default_factory=dict)


@_STRICT
@dataclass
class Progress:
    """The position of a run.

    phase: name of the phase in training.
    epoch: epochs of the phase that are over.
    batch: optimizer steps within the epoch.
    step: optimizer steps over all phases.
    seconds: of training so far, over all invocations.
    skipped: samples that could not be read, over all ranks, counted each time that one was met.
    skipped_in_epoch: those of this epoch.
    max_abs_difference: largest difference between masked and sliced outputs at the ends of phases so far.
    steps_skipped: steps whose loss or gradients were not finite.
    bad_in_a_row: how many of them came last.
    best_accuracy: on the test split, of the epoch that ended at ``best_step``.
    """

    phase: str = ""
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_epoch: int = 0
    max_abs_difference: float = 0.0
    steps_skipped: int = 0
    bad_in_a_row: int = 0
    best_accuracy: float = -1.0
    best_step: int | None = None


@_STRICT
@dataclass
class SpentEnergy:
    """Energy that was spent.

    joules: None from the moment on that a part was not measured.
    ranks: the fewest that had a sensor in any part, None before the first part.
    sensors: number of each kind, in the latest part.
    """

    joules: float | None = 0.0
    ranks: int | None = None
    sensors: dict[str, int] = field(default_factory=dict)

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


@dataclass
class FinishedPhase:
    """The outcome of a phase that is over, as far as a resume needs it."""

    epochs_run: int
    decision: Decision | None = None


@dataclass
class TrainState:
    """Everything that a run continues from.

    data: identity of the shards (``ImageData.identity``), plain JSON data.
    finished: the phases that are over, by name.
    model: weights and optimizer state of the phase in training.
    phase_state: tensors that this phase keeps beside its module (``Phase.extra_state``).
    """

    progress: Progress
    data: dict[str, Any]
    energy_run: SpentEnergy = field(default_factory=SpentEnergy)
    energy_epoch: SpentEnergy = field(default_factory=SpentEnergy)
    finished: dict[str, FinishedPhase] = field(default_factory=dict)
    model: ModelState = field(default_factory=ModelState)
    phase_state: dict[str, Tensor] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return all but the tensors, as plain JSON data."""
        return {
            "version": FORMAT_VERSION,
            "progress": asdict(self.progress),
            "data": self.data,
            "energy_run": asdict(self.energy_run),
            "energy_epoch": asdict(self.energy_epoch),
            "finished": {
                name: {"epochs_run": phase.epochs_run, "decision": _described(phase.decision)}
                for name, phase in self.finished.items()
            },
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors beside the model's: ``state/NAME`` of the phase, ``decision/PHASE/NAME``."""
        # A weight mask has a bit per weight, which JSON would blow up to megabytes.
        decisions = {
            f"decision/{phase}/{name}": tensor
            for phase, ended in self.finished.items()
            if ended.decision is not None
            for name, tensor in ended.decision.tensors().items()
        }
        return {f"state/{name}": tensor for name, tensor in self.phase_state.items()} | decisions

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
        return TrainState(
            found.progress,
            asdict(found.data),
            found.energy_run,
            found.energy_epoch,
            {
                name: FinishedPhase(ended.epochs_run, _restored(name, ended.decision, tensors))
                for name, ended in found.finished.items()
            },
            model,
            _below("state/", tensors),
        )

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


@_STRICT
@dataclass
class _Data:
    fingerprint: str
    shard_lengths: dict[str, list[int]]


@_STRICT
@dataclass
class _Finished:
    epochs_run: int
    decision: dict[str, Any] | None


@_STRICT
@dataclass
class _StateFile:
    version: int
    progress: Progress
    data: _Data
    energy_run: SpentEnergy
    energy_epoch: SpentEnergy
    finished: dict[str, _Finished]


_JSON = TypeAdapter(_StateFile)


def _described(decision: Decision | None) -> dict[str, Any] | None:
    return None if decision is None else {"kind": decision.kind, **decision.as_dict()}


def _restored(phase: str, data: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Decision | None:
    return None if data is None else restore_decision(data, _below(f"decision/{phase}/", tensors))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
