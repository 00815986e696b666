"""One phase in training: its engine, and a plain replica in which it is evaluated."""

from __future__ import annotations

import copy
from typing import Any

import torch

from dist_prune.engine.deepspeed_engine import Engine, TrainState
from dist_prune.gates.activation_checkpointing import checkpoint_blocks
from dist_prune.gates.insertion import sites
from dist_prune.methods import Phase
from dist_prune.pruning.mask import UnitMask
from dist_prune.training.context import RunContext
from dist_prune.training.evaluate import accuracies
from dist_prune.training.optimizer import build_optimizer, build_scheduler


def inherit(phase: Phase, old: TrainState) -> TrainState:
    """What a phase starts from: the part of the phase before that its transition names."""
    if phase.transition is None:
        return TrainState({}, {})
    tensors = phase.transition.tensors
    kept = tensors if phase.transition.keep_optimizer else {}
    return TrainState(
        {new: origin.take(old.weights[origin.name]) for new, origin in tensors.items()},
        {new: o.take(old.momentum[o.name]) for new, o in kept.items() if o.name in old.momentum},
    )


class PhaseTrainer:
    """A phase under DeepSpeed.

    The replica is a plain copy of the module: evaluation, masks and collapse use it with the weights of a
    snapshot, so that ZeRO 3 needs no collective per forward pass there and ranks may see unequal batches.
    """

    def __init__(
        self, setting: RunContext, phase: Phase, start: TrainState, schedule: dict[str, Any] | None
    ) -> None:
        self.setting = setting
        self.phase = phase
        self.sites = sites(phase.module)
        unplaced = phase.module.load_state_dict(start.weights, strict=False).unexpected_keys
        assert not unplaced, f"tensors without a place in phase {phase.name}: {unplaced}"
        self.replica = copy.deepcopy(phase.module).to(setting.device)
        if setting.config.checkpoint_activations:
            checkpoint_blocks(phase.module)  # the replica, a copy made before, stays plain
        optimizer = build_optimizer(phase.module, setting.config)
        scheduler = build_scheduler(optimizer, setting.config, phase.epochs, setting.steps_per_epoch)
        self.engine = Engine(
            phase.module,
            optimizer,
            scheduler,
            setting.ds_config,
            setting.batching,
            setting.device,
            setting.config.rank_timeout,
        )
        images = torch.zeros(setting.batching.micro, *setting.data.input_shape, device=setting.device)
        self.engine.restore_optimizer(start.momentum, schedule, images)
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
