"""The training loop: a page of verbs over the phases of a method. It never asks for a method by name."""

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterator

import torch

from dist_prune.checkpoints.train_state import ModelState, TrainState
from dist_prune.checkpoints.writer import CheckpointWriter
from dist_prune.data import Batch
from dist_prune.errors import UserError
from dist_prune.methods import Phase, PhaseResult, next_phase
from dist_prune.runtime.consistency import agree_on
from dist_prune.runtime.signals import StopRequest
from dist_prune.training.context import RunContext, interrupted_phase
from dist_prune.training.evaluate import collapse_difference
from dist_prune.training.optimizer import learning_rate
from dist_prune.training.phase_trainer import PhaseTrainer, inherit
from dist_prune.training.recorder import Accounts, Recorder, refuse_too_many
from dist_prune.training.step import RankFlags, StepMetrics, seed_step_rng, train_step


@dataclasses.dataclass
class Trainer:
    """Trains the phases of one method, from the start or from a checkpoint; all ranks together."""

    context: RunContext
    recorder: Recorder
    stop: StopRequest
    writer: CheckpointWriter
    state: TrainState  # where the run stands; its model is what the next phase begins with

    def __post_init__(self) -> None:
        self.progress = self.state.progress
        self.accounts = Accounts(self.context, self.state)
        self.steps_per_epoch = self.context.steps_per_epoch
        self._model: ModelState | None = None  # the engine's whole state, while no step has changed it

    def train(self) -> tuple[PhaseTrainer, PhaseResult] | None:
        """Train all phases; return the last one and its result, None if asked to stop (everything is saved then)."""
        phases, seed = self.context.method.phases(), self.context.config.seed
        is_resume = bool(self.progress.phase)
        phase = interrupted_phase(phases, self.state, seed) if is_resume else next_phase(phases, None, seed)
        while True:
            assert phase is not None  # ``Method.check`` has found a first one
            trainer = self._begin(phase)
            if not self._train_epochs(trainer):
                return None
            result = self._end(trainer)
            phase = next_phase(phases, result, seed)
            if phase is None:
                return trainer, result
            # Networks of the previous phase would stay in memory through the next one.
            del trainer, result

    def _train_epochs(self, trainer: PhaseTrainer) -> bool:
        """Train a phase until it is over; False if asked to stop."""
        while self.progress.batch or not trainer.phase.is_over(self.progress.epoch):
            for batches in self._rest_of_epoch(trainer):
                metrics = self._step(trainer, batches)
                self._observe(trainer, metrics)
                if metrics.flags.stop or self._checkpoint_is_due(metrics):
                    self._save(trainer)
                if metrics.flags.stop:
                    return False
            self._evaluate(trainer)
            self.progress.epoch += 1
            self.progress.batch = self.progress.skipped_in_epoch = 0
            self._save(trainer)
        return True

    def _begin(self, phase: Phase) -> PhaseTrainer:
        # A resume could not know which of the two was interrupted.
        if phase.name in self.state.finished:
            raise UserError(f"the method has two phases called '{phase.name}': give each phase a name of its own")
        # Not kept: the engine gets its own copy.
        start, self.state.model = self.state.model, ModelState()
        # A resume is in the phase already, and has its weights.
        if self.progress.phase != phase.name:
            self._enter(phase)
            start = inherit(phase, start)
        trainer = PhaseTrainer(self.context, phase, start)
        with trainer.engine.refusing_partitioned_weights:
            phase.on_weights_loaded(trainer.engine.module)
        return trainer

    def _enter(self, phase: Phase) -> None:
        """Begin the epochs of a new phase, unless it continues those of the previous one."""
        self.progress.phase = phase.name
        # A collapsed network trains on in the epoch and at the learning rate that its gated network had reached.
        if not phase.continues:
            self.progress.epoch = self.progress.batch = self.progress.skipped_in_epoch = 0
            # The best epoch is one of the last network that was trained, not of a larger one before.
            self.progress.best_accuracy, self.progress.best_step = -1.0, None

    def _rest_of_epoch(self, trainer: PhaseTrainer) -> Iterator[tuple[Batch, ...]]:
        """Yield this rank's micro-batches of one step at a time, for the steps of the epoch that are left."""
        trainer.engine.module.train()
        self._images, self._epoch_began, at = 0, time.monotonic(), self.progress
        batches = self.context.train_batches(at.epoch, skip_steps=at.batch, views=trainer.phase.views)
        while window := tuple(itertools.islice(batches, self.context.batching.accumulation)):
            yield window

    def _step(self, trainer: PhaseTrainer, batches: tuple[Batch, ...]) -> StepMetrics:
        self._model = None
        self.stop.count_step()
        at = self.progress
        epoch = at.epoch + at.batch / self.steps_per_epoch
        done, phase = at.epoch * self.steps_per_epoch + at.batch, trainer.phase
        trainer.engine.set_lr(learning_rate(trainer.optimizer, done, self.steps_per_epoch, phase.epochs))
        # What one rank alone knows travels with the step's all-reduce, so that all of them act alike.
        flags = RankFlags(
            stop=self.stop.reason is not None,
            failed=bool(self.context.pending_errors),
            skipped=self.context.data.skipped.take(),
            save=self.writer.check(),
        )
        seed_step_rng(self.context.config.seed, at.step)
        metrics = train_step(trainer.engine, phase, batches, epoch, flags, number=at.step)
        # A skipped step has shown nothing about gates that the budget may learn from.
        if metrics.applied:
            with trainer.engine.refusing_partitioned_weights:
                phase.after_step(trainer.engine.module, metrics.means, metrics.logits, epoch)
        at.step += 1
        at.batch += 1
        self._images += metrics.samples
        return metrics

    def _observe(self, trainer: PhaseTrainer, metrics: StepMetrics) -> None:
        # The step has told all ranks, so that they raise the error together.
        if metrics.flags.failed:
            self.context.raise_pending_errors()
        self.accounts.count_unreadable(metrics.flags.skipped)
        bad_batch = self.accounts.count_step(metrics)
        self.recorder.step(self.progress, metrics, trainer.sites, trainer.engine.lr, self._speed(), bad_batch)
        refuse_too_many(self.progress, self.context.config.max_bad_steps)

    def _speed(self) -> float | None:
        """Return images/s of this epoch; None if a stop came after its last step, so that nothing was trained since."""
        return self._images / (time.monotonic() - self._epoch_began) if self._images else None

    def _checkpoint_is_due(self, metrics: StepMetrics) -> bool:
        # The checkpoint of an epoch's last step follows its evaluation.
        at_end = self.progress.batch == self.steps_per_epoch
        return not at_end and (metrics.flags.save > 0 or self.writer.is_due(self.progress.step))

    def _snapshot(self, trainer: PhaseTrainer) -> ModelState:
        """Return the whole state of the engine."""
        if self._model is None:
            # The previous one may still be on its way to the disk, and memory holds one.
            self.writer.wait()
            self._model = trainer.engine.snapshot()
        return self._model

    def _evaluate(self, trainer: PhaseTrainer) -> None:
        speed = self._speed()
        trainer.load_replica(self._snapshot(trainer))
        # A sample of the training images shows how far gates agree; at the end of the phase all of them vote.
        decision = trainer.vote(limit=self.context.config.mask_samples)
        accuracy = trainer.evaluate(decision)
        self.accounts.count_unreadable(self.context.sync_errors())
        at = self.progress
        at.seconds = self.accounts.seconds()
        reached = accuracy.get("accuracy_consensus", accuracy["accuracy"])
        if reached > at.best_accuracy:
            at.best_accuracy, at.best_step = reached, at.step
        costs = self.context.method.costs
        macs = trainer.phase.macs(costs, decision)
        record = {
            "epoch": at.epoch + 1,
            "step": at.step,
            "phase": trainer.phase.name,
            "seconds": at.seconds,
            "images_per_second": speed,
            "samples_skipped": at.skipped,
            "steps_skipped": at.steps_skipped,
            # A network without gates has none of these.
            **dict.fromkeys(("accuracy_consensus", "open_ratio", "r_polar")),
            **accuracy,
            "gate_means": {},
            "gate_histogram": [],
            **(decision.figures() if decision else {}),
            "macs": macs,
            "macs_dense": costs.dense,
            "macs_ratio": macs / costs.dense,
            **self.accounts.end_epoch(),
        }
        self.recorder.evaluation(record, decision)

    def _save(self, trainer: PhaseTrainer) -> None:
        """Start to write a checkpoint."""
        model = self._snapshot(trainer)
        self.progress.seconds = self.accounts.seconds()
        # At the end of an epoch its evaluation has just measured.
        if self.progress.batch:
            self.accounts.add_energy()
        # Copies: the next steps change all of it while it is being written.
        phase_state = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in trainer.phase.extra_state().items()
        }
        state = dataclasses.replace(copy.deepcopy(self.state), model=model, phase_state=phase_state)
        plain = state.as_json()
        # Clocks and sensors differ from rank to rank.
        del plain["energy_run"], plain["energy_epoch"], plain["progress"]["seconds"]
        tensors = {**state.model.weights, **state.tensors()}
        agree_on({**tensors, **plain}, f"at step {self.progress.step}", self.context.device)
        self.writer.write(state)
        self.accounts.count_unreadable(self.context.sync_errors())

    def _end(self, trainer: PhaseTrainer) -> PhaseResult:
        """Take the decision of a phase that is over, and check that slicing by it is exact."""
        model = self.state.model = self._snapshot(trainer)
        self._model = None
        trainer.load_replica(model)
        decision = trainer.vote()
        self.accounts.count_unreadable(self.context.sync_errors())
        # One rank with another mask would train and save another network from here on.
        found = {"decision": decision.as_dict(), **decision.tensors()} if decision else {}
        agree_on({**model.weights, **found}, "before collapse", self.context.device)
        phase = trainer.phase
        result = PhaseResult(trainer.replica, self.progress.epoch, decision)
        difference = collapse_difference(self.context, phase, result)
        self.progress.max_abs_difference = max(difference, self.progress.max_abs_difference)
        self.state.finish(phase.name, result.epochs_run, decision)
        trainer.engine.close()
        return result
