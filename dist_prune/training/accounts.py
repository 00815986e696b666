"""What a run counts beside its steps: unreadable images, steps that were skipped, energy and time."""

import time
from typing import Any

from dist_prune.checkpoints.train_state import Progress, SpentEnergy, TrainState
from dist_prune.errors import RunError, UserError
from dist_prune.measure.energy import EnergyMeter, co2_grams, find_sensors
from dist_prune.training.context import RunContext
from dist_prune.training.step import StepMetrics


class TrainingDiverged(RunError):
    """Loss or gradients are not finite in too many steps in a row."""


class Accounts:
    """The counts of a run over all ranks and invocations, kept in its state; all ranks call all methods together.

    What came after the checkpoint that a run continues from is not counted, neither seconds nor energy.
    """

    def __init__(self, context: RunContext, state: TrainState) -> None:
        self._context, self._state, self._at = context, state, state.progress
        self._clock = time.monotonic() - state.progress.seconds
        self._meter = EnergyMeter(find_sensors(context.device), context.device)

    def seconds(self) -> float:
        """Return the seconds of this run so far, earlier invocations included."""
        return time.monotonic() - self._clock

    def count_unreadable(self, samples: int) -> None:
        """Count samples that could not be read, over all ranks; too many of them in an epoch end the run."""
        at, limit = self._at, self._context.config.max_skipped
        at.skipped += samples
        at.skipped_in_epoch += samples
        if at.skipped_in_epoch > limit:
            raise UserError(
                f"{at.skipped_in_epoch} images of this epoch could not be read, more than max_skipped={limit}: "
                "fix the data (lines above that begin with 'skipped:' name them) or raise max_skipped"
            )

    def count_step(self, metrics: StepMetrics) -> dict[str, list[int]] | None:
        """Count a step; return the samples of its batch, by shard, if it was skipped, else None."""
        at = self._at
        if metrics.applied:
            at.bad_in_a_row = 0
            return None
        at.steps_skipped += 1
        at.bad_in_a_row += 1
        # The order of samples is a function of epoch and step, so any step's batch can be named afterwards.
        return self._context.data.samples_of_step(at.epoch, at.batch - 1, self._context.config.global_batch_size)

    def add_energy(self) -> None:
        """Measure up to now."""
        measured = self._meter.take()
        # The epoch's account starts anew at each evaluation, the run's never does.
        self._state.energy_run.add(measured)
        self._state.energy_epoch.add(measured)

    def end_epoch(self) -> dict[str, Any]:
        """Measure up to now; return what an eval record says of the epoch's energy."""
        self.add_energy()
        ended, self._state.energy_epoch = self._state.energy_epoch, SpentEnergy()
        return {**ended.record(), "energy_joules_total": self._state.energy_run.joules}

    def summary(self) -> dict[str, Any]:
        """Measure up to now; return what the summary says of the run."""
        self.add_energy()
        run, intensity = self._state.energy_run, self._context.config.grid_intensity
        co2 = {} if intensity is None else {"co2_grams": co2_grams(run.joules, intensity), "grid_intensity": intensity}
        return {
            "seconds_total": self.seconds(),
            **run.record(),
            "energy_missing": list(self._meter.missing),
            **co2,
            "samples_skipped": self._at.skipped,
            "steps_skipped": self._at.steps_skipped,
        }


def refuse_too_many(at: Progress, limit: int) -> None:
    """Raise TrainingDiverged, on all ranks alike, if more steps in a row were skipped than ``limit``."""
    count = at.bad_in_a_row
    if count > limit:
        where = f"step {at.step}" if count == 1 else f"the {count} steps up to {at.step}"
        raise TrainingDiverged(
            f"loss or gradients were not finite in {where}, more in a row than max_bad_steps={limit}: lower lr, or set "
            "gradient_clipping in the DeepSpeed config; nothing was learned there"
        )
