"""One phase in training: its engine, and a plain replica for evaluation."""

import copy

import torch

from dist_prune.checkpoints.train_state import ModelState
from dist_prune.engine.deepspeed_engine import Engine
from dist_prune.errors import UserError, nearest
from dist_prune.gates.wrappers import checkpoint_blocks, sites
from dist_prune.methods import Phase
from dist_prune.pruning.mask import Decision
from dist_prune.training.context import RunContext
from dist_prune.training.evaluate import accuracies
from dist_prune.training.optimizer import build_optimizer, state_names


def inherit(phase: Phase, old: ModelState) -> ModelState:
    """Return what a phase starts from: the part of the previous phase that its transition names."""
    if phase.transition is None or not old.weights:
        return ModelState()
    tensors = phase.transition.tensors
    for new, origin in tensors.items():
        if origin.name not in old.weights:
            raise UserError(
                f"the transition to phase '{phase.name}' takes '{new}' from '{origin.name}', which the previous phase "
                f"does not have; {nearest(origin.name, old.weights)}"
            )
    weights = {new: origin.take(old.weights[origin.name]) for new, origin in tensors.items()}
    if not phase.transition.keep_optimizer:
        return ModelState(weights)
    states = {
        new: {
            # A count of steps belongs to the weight as a whole; all other states have a value per weight.
            key: value if key == "step" else origin.take(value)
            for key, value in old.optimizer_state[origin.name].items()
        }
        for new, origin in tensors.items()
        if origin.name in old.optimizer_state
    }
    return ModelState(weights, states)


def _refuse_misfit(phase: Phase, start: ModelState, gates: int) -> None:
    """Raise UserError for a phase that does not fit its own module."""
    if bool(gates) != phase.has_gates:
        raise UserError(f"phase '{phase.name}' has has_gates={phase.has_gates}, its module has {gates} gates")
    own = phase.module.state_dict()
    for name, tensor in start.weights.items():
        if name not in own:
            raise UserError(f"phase '{phase.name}' inherits '{name}'; {nearest(name, own)}")
        if tensor.shape != own[name].shape:
            raise UserError(
                f"phase '{phase.name}' inherits '{name}' as {tuple(tensor.shape)}, it is {tuple(own[name].shape)}"
            )


class PhaseTrainer:
    """A phase under DeepSpeed.

    The replica is a plain copy of the module. Evaluation, vote and collapse use it with the weights of a snapshot, so
    ZeRO 3 needs no collectives per forward pass there, and ranks may have unequal numbers of batches.
    """

    def __init__(self, context: RunContext, phase: Phase, start: ModelState) -> None:
        self.context = context
        self.phase = phase
        self.sites = sites(phase.module)
        _refuse_misfit(phase, start, len(self.sites))
        # A transition names parameters and buffers of the new module; other tensors keep what the module brings.
        phase.module.load_state_dict(start.weights, strict=False)
        # Copied before the engine partitions, compiles or checkpoints the module.
        self.replica = copy.deepcopy(phase.module).to(context.device)
        self.optimizer = phase.optimizer or context.config
        if phase.label_smoothing is None:
            phase.label_smoothing = context.config.label_smoothing
        if context.config.checkpoint_activations:
            checkpoint_blocks(phase.module)
        optimizer, timeout = build_optimizer(phase.module, self.optimizer), context.config.rank_timeout
        self.engine = Engine(phase.module, optimizer, context.ds_config, context.batching, context.device, timeout)
        # ZeRO creates optimizer state in its first step: restoring needs one with a batch of the right shape.
        images = torch.zeros(phase.views * context.batching.micro, *context.data.train_shape(0), device=context.device)
        # A phase with another optimizer than the previous one starts without state.
        names = state_names(self.optimizer)
        known = {
            parameter: {key: state[key] for key in names}
            for parameter, state in start.optimizer_state.items()
            if names and names <= state.keys()
        }
        self.engine.restore_optimizer(known, images)
        # After the restore, whose priming step would be compiled for itself.
        if context.config.compile:
            self.engine.compile()

    def load_replica(self, model: ModelState) -> None:
        """Give the replica the weights of a snapshot."""
        self.replica.load_state_dict(model.weights)
        # Evaluation leaves the replica in eval mode; the first vote must not find it in another.
        self.replica.eval()
        self.phase.on_weights_loaded(self.replica)

    def vote(self, limit: int | None = None) -> Decision | None:
        """Return what the replica decides over the training images (the first ``limit`` of them)."""
        with self.engine.autocast(), self.context.with_read_errors():
            return self.phase.vote(self.replica, self.context.eval_batches("train", limit))

    def evaluate(self, decision: Decision | None) -> dict[str, float]:
        """Return the test accuracy of the replica as it is and, if it has decided, under its decision."""
        models, masked = {"accuracy": self.replica}, self.phase.masked(self.replica, decision)
        if masked is not self.replica:
            models["accuracy_consensus"] = masked
        with self.context.with_read_errors():
            batches = self.context.eval_batches("test")
            found = accuracies(models, batches, self.context.device, self.engine.autocast())
        return found if decision is None else {"accuracy_consensus": found["accuracy"], **found}
