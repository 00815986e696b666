"""One phase in training: its engine, and a plain replica in which it is evaluated."""

from __future__ import annotations

import copy

import torch

from dist_prune.engine.deepspeed_engine import Engine
from dist_prune.engine.zero_state import TrainState
from dist_prune.gates.activation_checkpointing import checkpoint_blocks
from dist_prune.gates.insertion import sites
from dist_prune.methods import Phase
from dist_prune.pruning.mask import UnitMask
from dist_prune.training.context import RunContext
from dist_prune.training.evaluate import accuracies
from dist_prune.training.optimizer import LearningRate, build_optimizer, state_names


def inherit(phase: Phase, old: TrainState) -> TrainState:
    """What a phase starts from: the part of the phase before that its transition names."""
    if phase.transition is None:
        return TrainState({}, {})
    tensors = phase.transition.tensors
    weights = {new: origin.take(old.weights[origin.name]) for new, origin in tensors.items()}
    if not phase.transition.keep_optimizer:
        return TrainState(weights, {})
    states = {
        new: {
            # A count of steps belongs to the weight as a whole; all other states have a value per weight.
            key: value if key == "step" else origin.take(value)
            for key, value in old.optimizer_state[origin.name].items()
        }
        for new, origin in tensors.items()
        if origin.name in old.optimizer_state
    }
    return TrainState(weights, states)


class PhaseTrainer:
    """A phase under DeepSpeed.

    The replica is a plain copy of the module: evaluation, masks and collapse use it with the weights of a
    snapshot, so that ZeRO 3 needs no collective per forward pass there and ranks may see unequal batches.
    """

    def __init__(self, setting: RunContext, phase: Phase, start: TrainState) -> None:
        self.setting = setting
        self.phase = phase
        self.sites = sites(phase.module)
        unplaced = phase.module.load_state_dict(start.weights, strict=False).unexpected_keys
        assert not unplaced, f"tensors without a place in phase {phase.name}: {unplaced}"
        self.replica = copy.deepcopy(phase.module).to(setting.device)
        optimizer = phase.optimizer or setting.config
        if phase.label_smoothing is None:
            phase.label_smoothing = setting.config.label_smoothing
        self.learning_rate = LearningRate(optimizer, phase.epochs, setting.steps_per_epoch)
        if setting.config.checkpoint_activations:
            checkpoint_blocks(phase.module)  # the replica, a copy made before, stays plain
        self.engine = Engine(
            phase.module,
            build_optimizer(phase.module, optimizer),
            setting.ds_config,
            setting.batching,
            setting.device,
            setting.config.rank_timeout,
        )
        images = torch.zeros(setting.batching.micro, *setting.data.input_shape, device=setting.device)
        names = state_names(optimizer)  # a phase with another optimizer than the one before begins it anew
        known = {
            parameter: {key: state[key] for key in names}
            for parameter, state in start.optimizer_state.items()
            if names and names <= state.keys()
        }
        self.engine.restore_optimizer(known, images)
        if setting.config.compile:
            self.engine.compile()

    def load_replica(self, snapshot: TrainState) -> None:
        """Give the replica the weights of a snapshot."""
        self.replica.load_state_dict(snapshot.weights)
        self.phase.loaded(self.replica)

    def decide(self, limit: int | None = None) -> UnitMask | None:
        """The mask that the replica agrees on over the training images (the first ``limit`` of them)."""
        with self.engine.autocast(), self.setting.with_read_errors():
            return self.phase.decide(self.replica, self.setting.eval_batches("train", limit))

    def evaluate(self, mask: UnitMask | None) -> dict[str, float]:
        """Test accuracy of the replica, with its gates as they are and, if it has a mask, fixed to that."""
        models, fixed = {"accuracy": self.replica}, self.phase.fixed(self.replica, mask)
        if fixed is not self.replica:
            models["accuracy_consensus"] = fixed
        with self.setting.with_read_errors():
            found = accuracies(
                models,
                self.setting.eval_batches("test"),
                self.setting.device,
                self.engine.autocast(),
                alike=lambda: self.phase.agrees(self.replica, mask),
            )
        return found if mask is None else {"accuracy_consensus": found["accuracy"], **found}
