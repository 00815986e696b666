"""What a run counts beside its steps, on all ranks, and its records on disk and console, which rank 0 writes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dist_prune import distributed
from dist_prune.checkpoints.train_state import Progress, SpentEnergy, TrainState
from dist_prune.errors import RunError, UserError
from dist_prune.measure.energy import EnergyMeter, co2_grams, find_sensors
from dist_prune.monitor import names
from dist_prune.monitor.console import ProgressBar, final_table
from dist_prune.monitor.pictures import MAP_TITLE, activation_maps, gate_history
from dist_prune.monitor.report import write_report
from dist_prune.monitor.tensorboard import TensorBoardLog
from dist_prune.pruning.mask import Decision
from dist_prune.pruning.sites import Site
from dist_prune.regularizers import mean_over_sites, polarization
from dist_prune.training.context import RunContext
from dist_prune.training.step import StepMetrics

# Mean activation below which a run that has no budget most likely prunes more than its user wants.
_FEW_OPEN = 0.1
# Samples of a skipped batch that its line names; metrics.jsonl has all of them.
_SAMPLES_SHOWN = 8


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


class Recorder:
    """Records of one invocation: metrics.jsonl, TensorBoard, progress on the console.

    Errors of writing do not end the run here: all ranks raise them together (``RunContext.capture_write_errors``).
    """

    def __init__(self, context: RunContext, total_steps: int, first_step: int) -> None:
        """Raises OSError if nothing can be written."""
        self._enabled = distributed.is_main()
        self._config, self._run, self._writing = context.config, context.folder, context.capture_write_errors
        if self._enabled:
            # Records later than the checkpoint would appear twice after a resume.
            self._run.drop_after(first_step)
            # Also at step 0: an earlier invocation may have written events and ended before its first checkpoint.
            self._tensorboard = TensorBoardLog(self._run.tensorboard, purge_step=first_step + 1)
            self._progress = ProgressBar(total_steps, initial=first_step)

    def say(self, text: str) -> None:
        """Show a line."""
        if self._enabled:
            self._progress.line(text)

    def step(
        self,
        at: Progress,
        record: StepMetrics,
        sites: Sequence[Site],
        lr: float,
        speed: float | None,
        bad_batch: Mapping[str, Sequence[int]] | None,
    ) -> None:
        """Record one optimizer step, of which every ``log_every``-th goes to the disk, and each that was skipped.

        speed: images/s; bad_batch: the samples of a step that was skipped, by shard.
        """
        if not self._enabled:
            return
        if bad_batch is not None:
            self.say(_skipped_line(at.step, record, bad_batch))
        gates = _gate_metrics(record.means, sites)
        epoch, step = at.epoch + 1, at.step
        self._progress.update(step, epoch, record.losses["total"], record.accuracy, gates.get(names.OPEN_RATIO), speed)
        # The first step shows at once that training works; a skipped step is always worth a line.
        if step % self._config.log_every and step > 1 and bad_batch is None:
            return
        metrics: dict[str, float | None] = {names.LOSS + term: value for term, value in record.losses.items()}
        metrics |= {names.ACCURACY_TRAIN: record.accuracy, names.LEARNING_RATE: lr, names.IMAGES_PER_SECOND: speed}
        metrics |= gates
        parts = record.means.split([site.units for site in sites]) if sites else ()
        means = {site.name: part.mean().item() for site, part in zip(sites, parts, strict=True)}
        place = {"epoch": epoch, "step": step, "samples_skipped": at.skipped, "steps_skipped": at.steps_skipped}
        bad = {} if bad_batch is None else {"skipped_batch": bad_batch}
        with self._writing():
            self._run.append("train", {**place, **metrics, "gate_means": means, **bad})
            self._tensorboard.scalars(step, {**metrics, **{names.SITE + name: mean for name, mean in means.items()}})

    def evaluation(self, record: Mapping[str, Any], decision: Decision | None) -> None:
        """Record the evaluation of one epoch and draw the mean activations so far."""
        if not self._enabled:
            return
        scalars = {
            names.ACCURACY_DYNAMIC: record["accuracy"],
            names.ACCURACY_CONSENSUS: record["accuracy_consensus"],
            names.MACS_RATIO: record["macs_ratio"],
            names.ENERGY_EPOCH: record["energy_joules"],
            names.ENERGY_TOTAL: record["energy_joules_total"],
        }
        with self._writing():
            self._run.append("eval", record)
            self._tensorboard.scalars(record["step"], scalars)
            if decision is not None:
                self._run.write_json(self._run.mask, decision.as_dict())
                history = gate_history(self._run.read_metrics("eval"))
                # A mask of weights has no sites.
                if history.sites:
                    picture = activation_maps([(MAP_TITLE, history)])
                    self._tensorboard.figure(names.MEAN_ACTIVATION_PICTURE, picture, record["step"])
        self.say(_evaluation_line(record))
        # A budget says how little may stay open; without one it is the loss weights that close units.
        if self._config.target_macs is None and record["open_ratio"] is not None and record["open_ratio"] < _FEW_OPEN:
            self.say(
                f"warning: only {record['open_ratio']:.1%} of the gates are open: lower activation, "
                "raise it later (a ramp), or set target_macs"
            )

    def summary(self, record: Mapping[str, Any]) -> None:
        """Record the end of the run and show its table."""
        if self._enabled:
            with self._writing():
                self._run.append("summary", record)
            run = self._run
            files = {"sliced network": run.sliced, "report": run.report / "report.html", "TensorBoard": run.tensorboard}
            self.say("\n" + final_table(record, files))

    def report(self) -> None:
        """Draw the pictures and the page of the run so far."""
        if self._enabled:
            with self._writing():
                self._run.check_owner()
                write_report(self._run)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._enabled:
            self._progress.close()
            with self._writing():
                self._tensorboard.close()


def _gate_metrics(means: Tensor, sites: Sequence[Site]) -> dict[str, float]:
    if not sites:
        return {}
    gates = (means.double(), tuple(site.units for site in sites))
    return {names.OPEN_RATIO: min(mean_over_sites(gates).item(), 1.0), names.R_POLAR: polarization(gates).item()}


def _evaluation_line(record: Mapping[str, Any]) -> str:
    parts = ["epoch {epoch}", "accuracy {accuracy:.2%}"]
    if record["r_polar"] is not None:
        parts += ["consensus {accuracy_consensus:.2%}", "open {open_ratio:.1%}", "R_polar {r_polar:.4f}"]
    measured = record["images_per_second"] is not None
    parts += ["MACs {macs_ratio:.1%}", "{images_per_second:,.0f} images/s" if measured else "speed not measured"]
    return "  ".join(parts).format_map(record)


def _skipped_line(step: int, record: StepMetrics, samples: Mapping[str, Sequence[int]]) -> str:
    named = [f"{shard} {row}" for shard, rows in samples.items() for row in rows]
    more = len(named) - _SAMPLES_SHOWN
    return (
        f"step {step} skipped: its loss was {record.losses['total']:.4g}, and its gradients not finite; its batch "
        f"(shard and sample): {', '.join(named[:_SAMPLES_SHOWN])}"
        + (f" and {more} more (see metrics.jsonl)" if more > 0 else "")
    )
