"""The training loop: a page of verbs over the phases of a method. It never asks for a method by name."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from dist_prune.checkpoints.format import Checkpoint, with_extra_state
from dist_prune.checkpoints.recorded import check_weights
from dist_prune.checkpoints.writer import Saving, note_best
from dist_prune.engine.zero_state import TrainState
from dist_prune.errors import UserError
from dist_prune.measure.energy import EnergyMeter
from dist_prune.measure.sensors import find_sensors
from dist_prune.methods import Phase
from dist_prune.pruning.mask import UnitMask
from dist_prune.runtime.consistency import agree_on
from dist_prune.runtime.signals import StopRequest
from dist_prune.training.bad_steps import count_bad_steps, refuse_too_many
from dist_prune.training.context import Progress, RunContext
from dist_prune.training.energy_account import EnergyAccount
from dist_prune.training.finish import collapse_difference
from dist_prune.training.phase_trainer import PhaseTrainer, inherit
from dist_prune.training.recorder import Recorder
from dist_prune.training.step import Batch, RankFlags, StepMetrics, seed_step_rng, train_step


class Trainer:
    """Trains the phases of one method, from the start or from a checkpoint; all ranks together."""

    def __init__(
        self,
        setting: RunContext,
        recorder: Recorder,
        stop: StopRequest,
        saving: Saving,
        resume: Checkpoint | None,
    ) -> None:
        self.setting = setting
        self.recorder = recorder
        self.stop = stop
        self.saving = saving
        self.position = Progress(**resume.state["position"]) if resume else Progress()
        self.structures: dict[str, Mapping[str, Any]] = dict(resume.state["structures"]) if resume else {}
        self._resume = resume
        self._begun: set[str] = set()  # names of the phases so far
        self._before: TrainState | None = None  # how the phase before ended
        self._clock = time.monotonic() - self.position.seconds
        meter = EnergyMeter(find_sensors(setting.device), setting.device)
        self.energy = EnergyAccount(meter, resume)

    def train(self) -> PhaseTrainer | None:
        """Train to the end and return the last phase, or None if asked to stop (all is being saved then)."""
        run = None
        for phase in self.setting.method.phases(self.structures):
            if self._is_over(phase):
                continue
            run, snapshot = self._begin(phase), None
            while self.position.batch or not phase.is_over(self.position.epoch):  # epochs are ended
                snapshot = None  # nobody needs its memory any more
                for batches in self._rest_of_epoch(run):
                    record = self._step(run, batches)
                    self._observe(run, record)
                    if record.stop:
                        self._save(run, self._snapshot(run))
                        return None
                    if self.saving.is_due(self.position, record):
                        self._save(run, self._snapshot(run))
                snapshot = self._snapshot(run)
                self._evaluate(run, snapshot)
                self._turn_epoch()
                self._save(run, snapshot)
            self._end(run, snapshot or run.engine.snapshot())
        return run

    def seconds(self) -> float:
        """Seconds of this run so far, earlier invocations included."""
        return time.monotonic() - self._clock

    def _is_over(self, phase: Phase) -> bool:
        """Whether the checkpoint to resume lies in a later phase than this one."""
        if phase.name in self._begun:  # a resume could not know which of the two was interrupted
            raise UserError(
                f"the method has two phases called '{phase.name}': give each phase a name of its own"
            )
        self._begun.add(phase.name)
        return self._resume is not None and self.position.phase != phase.name

    def _begin(self, phase: Phase) -> PhaseTrainer:
        self.structures[phase.name] = dict(phase.structure)
        if self._resume is not None:
            checkpoint, self._resume = self._resume, None
            phase.load_extra_state(checkpoint.pop_extra_state())
            check_weights(checkpoint, phase.module)
            start = TrainState(checkpoint.weights, checkpoint.optimizer_state)
            run = PhaseTrainer(self.setting, phase, start)
            phase.loaded(run.engine.module)
            return run
        self.position.phase = phase.name
        if not phase.continues:
            self.position.epoch = self.position.batch = self.position.skipped_in_epoch = 0
        start = inherit(phase, self._before) if self._before else TrainState({}, {})
        return PhaseTrainer(self.setting, phase, start)

    def _rest_of_epoch(self, run: PhaseTrainer) -> Iterator[tuple[Batch, ...]]:
        """This rank's micro-batches that are left of the epoch, as many at a time as make a step."""
        run.engine.module.train()
        self._images, self._training_began = 0, time.monotonic()
        micro_batches = iter(self.setting.train_batches(self.position.epoch, skip_steps=self.position.batch))
        while window := tuple(itertools.islice(micro_batches, self.setting.batching.accumulation)):
            yield window

    def _step(self, run: PhaseTrainer, batches: tuple[Batch, ...]) -> StepMetrics:
        self.stop.count_step()
        self.saving.check()
        steps_per_epoch = self.setting.steps_per_epoch
        epoch = self.position.epoch + self.position.batch / steps_per_epoch
        self._lr = run.learning_rate.at(self.position.epoch * steps_per_epoch + self.position.batch)
        run.engine.set_lr(self._lr)
        said = RankFlags(
            stop=self.stop.reason is not None,
            failed=bool(self.setting.pending_errors),
            skipped=self.setting.data.skipped.take(),
            save=self.saving.is_time(),
        )
        seed_step_rng(self.setting.config.seed, self.position.step)
        record = train_step(run.engine, run.phase, batches, epoch, said, number=self.position.step)
        if record.applied:
            run.phase.after_step(run.engine.module, record.means, record.logits, epoch)
        self.position.step += 1
        self.position.batch += 1
        self._images += record.samples
        return record

    def _count_skipped(self, samples: int) -> None:
        """Count samples that could not be read, over all ranks; too many of them in an epoch end the run."""
        at, limit = self.position, self.setting.config.max_skipped
        at.skipped += samples
        at.skipped_in_epoch += samples
        if at.skipped_in_epoch > limit:
            raise UserError(
                f"{at.skipped_in_epoch} images of this epoch could not be read, more than max_skipped={limit}: "
                "fix the data (lines above that begin with 'skipped:' name them) or raise max_skipped"
            )

    def _observe(self, run: PhaseTrainer, record: StepMetrics) -> None:
        if record.failed:
            self.setting.raise_pending_errors()
        self._count_skipped(record.skipped)
        bad_batch = count_bad_steps(self.setting, self.position, record)
        speed = self._images / (time.monotonic() - self._training_began)
        self.recorder.step(self.position, record, run.sites, self._lr, speed, bad_batch)
        refuse_too_many(self.position, self.setting.config.max_bad_steps)

    def _evaluate(self, run: PhaseTrainer, snapshot: TrainState) -> None:
        # A run that was stopped after the epoch's last step has trained nothing since, so there is no speed to report.
        speed = self._images / (time.monotonic() - self._training_began) if self._images else None
        run.load_replica(snapshot)
        mask = run.decide(limit=self.setting.config.mask_samples)
        accuracy = run.evaluate(mask)
        self._count_skipped(self.setting.sync_errors())
        self.position.seconds = self.seconds()
        note_best(self.position, accuracy.get("accuracy_consensus", accuracy["accuracy"]))
        self.recorder.evaluation(self._evaluation_record(run.phase, mask, accuracy, speed), mask)

    def _evaluation_record(
        self, phase: Phase, mask: UnitMask | None, accuracy: dict[str, float], speed: float | None
    ) -> dict[str, Any]:
        costs = self.setting.costs
        macs = phase.macs(costs, mask)
        return {
            "epoch": self.position.epoch + 1,
            "step": self.position.step,
            "phase": phase.name,
            "seconds": self.position.seconds,
            "images_per_second": speed,
            "samples_skipped": self.position.skipped,
            "steps_skipped": self.position.steps_skipped,
            "accuracy_consensus": None,
            **accuracy,
            "open_ratio": mask.open_ratio if mask else None,
            "r_polar": mask.r_polar if mask else None,
            "macs": macs,
            "macs_dense": costs.dense,
            "macs_ratio": macs / costs.dense,
            **self.energy.end_epoch(),
            "gate_means": mask.mean_activation if mask else {},
            "gate_histogram": mask.histogram if mask else [],
        }

    def _turn_epoch(self) -> None:
        self.position.epoch += 1
        self.position.batch = self.position.skipped_in_epoch = 0

    def _snapshot(self, run: PhaseTrainer) -> TrainState:
        self.saving.wait()
        return run.engine.snapshot()

    def _save(self, run: PhaseTrainer, snapshot: TrainState) -> None:
        """Have a portable checkpoint written."""
        self.position.seconds = self.seconds()
        if self.position.batch:  # else an evaluation has just measured
            self.energy.add()
        state = {
            "phase": run.phase.name,
            "structures": self.structures,
            "position": asdict(self.position),
            "data": self.setting.data.identity(),
        }
        clockless = {**state, "position": {**asdict(self.position), "seconds": None}}
        weights = with_extra_state(snapshot.weights, run.phase.extra_state())
        agree_on({**weights, **clockless}, f"at step {self.position.step}", self.setting.device)
        state["energy"] = self.energy.state()
        self.saving.write(Checkpoint(weights, snapshot.optimizer_state, state), self.position)
        self._count_skipped(self.setting.sync_errors())

    def _end(self, run: PhaseTrainer, snapshot: TrainState) -> None:
        """Hand the trained module to the method, and its state (``snapshot``) to the phase that follows."""
        self._before = snapshot
        run.load_replica(snapshot)
        run.phase.trained, run.phase.ended = run.replica, self.position.epoch
        run.phase.decision = run.decide()
        self._count_skipped(self.setting.sync_errors())
        mask = run.phase.decision.as_dict() if run.phase.decision else None
        agree_on({**self._before.weights, "mask": mask}, "before collapse", self.setting.device)
        difference = collapse_difference(self.setting, run.phase)
        self.position.max_abs_difference = max(difference, self.position.max_abs_difference)
        run.engine.close()
