"""Records of a run on disk and on the console: rank 0 writes, all other ranks stay silent."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dist_prune import distributed
from dist_prune.checkpoints.train_state import Progress
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
            files = {"sliced network": self._run.sliced, "report": self._run.report / "report.html"}
            self.say("\n" + final_table(record, {**files, "TensorBoard": self._run.tensorboard}))

    def report(self) -> None:
        """Draw the pictures and the page of the run so far."""
        if self._enabled:
            with self._writing():
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
    parts = [f"epoch {record['epoch']}", f"accuracy {record['accuracy']:.2%}"]
    if record["r_polar"] is not None:
        parts += [f"consensus {record['accuracy_consensus']:.2%}", f"open {record['open_ratio']:.1%}"]
        parts += [f"R_polar {record['r_polar']:.4f}"]
    parts += [f"MACs {record['macs_ratio']:.1%}"]
    speed = record["images_per_second"]
    parts += ["speed not measured" if speed is None else f"{speed:,.0f} images/s"]
    return "  ".join(parts)


def _skipped_line(step: int, record: StepMetrics, samples: Mapping[str, Sequence[int]]) -> str:
    named = [f"{shard} {row}" for shard, rows in samples.items() for row in rows]
    more = len(named) - _SAMPLES_SHOWN
    return (
        f"step {step} skipped: its loss was {record.losses['total']:.4g}, and its gradients not finite; its batch "
        f"(shard and sample): {', '.join(named[:_SAMPLES_SHOWN])}"
        + (f" and {more} more (see metrics.jsonl)" if more > 0 else "")
    )
