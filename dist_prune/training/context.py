"""Run context; no engine is imported here, so that offline commands can use it."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor

from dist_prune import distributed
from dist_prune.checkpoints.train_state import TrainState
from dist_prune.config import RunConfig
from dist_prune.data import Batch, ImageData, ReadingFailed, ShardError, open_data
from dist_prune.engine.ds_config import Batching
from dist_prune.errors import NothingToEvaluate, RunError, UserError, nearest, one_line
from dist_prune.methods import METHODS, Method, Phase, PhaseResult, Phases, Task, next_phase
from dist_prune.monitor.records import RunFolder
from dist_prune.runtime.failures import CannotWrite


@dataclass(frozen=True)
class RunContext:
    """The parts of a run; equal on all ranks except for the device and ``pending_errors``.

    A rank that cannot read its data or cannot write must not leave the others waiting in a collective. It continues,
    its error goes into ``pending_errors``, and all ranks raise it together, in ``sync_errors`` or after a step.
    """

    config: RunConfig
    ds_config: dict[str, Any]
    batching: Batching
    data: ImageData
    method: Method
    device: torch.device
    folder: RunFolder
    pending_errors: list[ShardError | ReadingFailed | RunError | UserError] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.data.steps_per_epoch(self.config.global_batch_size)

    def train_batches(self, epoch: int, skip_steps: int, views: int = 1) -> Iterator[Batch]:
        """Yield this rank's micro-batches of an epoch, on its device, without those of its first ``skip_steps`` steps.

        images: (views * B, C, H, W), view after view; labels: (B,). Black images stand in where the data cannot be
        read; the step tells all ranks.
        """
        batching = self.batching
        batches = self.data.train_batches(
            epoch,
            micro_batch=batching.micro,
            global_batch=batching.global_batch,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            skip_steps=skip_steps,
            views=views,
            device=self.device,
        )
        try:
            yield from batches
        except (ShardError, ReadingFailed) as error:
            # Batches without end: this rank takes part in every collective until the step has told the others.
            self.pending_errors.append(error)
            black = torch.zeros(views * batching.micro, *self.data.train_shape(epoch), device=self.device)
            labels = torch.zeros(batching.micro, dtype=torch.int64, device=self.device)
            yield from itertools.repeat(Batch(black, labels))

    def eval_batches(self, split: str, limit: int | None = None) -> Iterator[Batch]:
        """Yield this rank's share of a split, on its device, every sample exactly once; limit: of its first samples.

        Use them within ``with_read_errors``, and call ``sync_errors`` before you use a result.
        """
        batches = self.data.eval_batches(
            split,
            # A micro-batch may be tiny; without gradients there is room for more.
            batch_size=max(self.batching.micro, 64),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            limit=limit,
            device=self.device,
        )
        return self._while_readable(batches)

    def first_images(self, split: str) -> Tensor:
        """Return the first images of a split, up to 64 (B, C, H, W), the same on all ranks; all of them call it."""
        # Every rank reads as rank 0 does: comparing ranks needs equal images.
        batches = self.data.eval_batches(split, batch_size=64, rank=0, world_size=1, device=self.device)
        batch = next(self._while_readable(batches), None)
        self.sync_errors()
        if batch is None:
            raise NothingToEvaluate(f"none of the images of the {split} split could be read: fix the data")
        return batch.images

    def _while_readable(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            yield from batches
        except (ShardError, ReadingFailed) as error:
            self.pending_errors.append(error)

    @contextlib.contextmanager
    def capture_write_errors(self) -> Iterator[None]:
        """Return a context for writing into the run folder: if one rank cannot, all ranks raise it together, later."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            self.pending_errors.append(self._cause_of(error))
        except (RunError, UserError) as error:
            # For example a file that comes back changed.
            self.pending_errors.append(error)

    def _cause_of(self, error: Exception) -> RunError:
        try:
            # Who continues a run removes what the invocation before it was writing.
            self.folder.check_owner()
        except (RunError, OSError) as cause:
            if isinstance(cause, RunError):
                return cause
        return CannotWrite.because_of(error, self.folder.path)

    @contextlib.contextmanager
    def with_read_errors(self) -> Iterator[None]:
        """Return a context for using a split on all ranks: if no sample is left, they raise the reason."""
        try:
            yield
        except NothingToEvaluate:
            # The cause (a missing shard) says more than its consequence.
            self.sync_errors()
            raise

    def sync_errors(self) -> int:
        """Return the number of samples skipped since the last call or step, over all ranks, which all call it.

        Raises UserError or RunError on all ranks if one of them could not read its data or write.
        """
        mine = torch.tensor([self.data.skipped.take(), len(self.pending_errors)], device=self.device)
        skipped, failed = distributed.all_reduce_sum(mine).tolist()
        if failed:
            self.raise_pending_errors()
        return skipped

    def raise_pending_errors(self) -> NoReturn:
        """Raise the first rank's pending error on all ranks, as UserError if data are bad; all of them call it."""
        error = distributed.first_object(next(iter(self.pending_errors), None))
        if isinstance(error, (RunError, UserError)):
            raise error
        hint = "; bad_data=skip leaves out what cannot be read" if self.config.bad_data == "error" else ""
        raise UserError(f"{error}{hint}")


def open_images(config: RunConfig) -> ImageData:
    """Open the recipe's data; each rank opens its own."""
    return open_data(
        config.data,
        eval_data=config.eval_data,
        seed=config.seed,
        workers=config.workers,
        image_size=config.image_size,
        eval_size=config.eval_size,
        eval_crop=config.eval_crop,
        interpolation=config.interpolation,
        augment=config.augment,
        channels_last=config.channels_last,
        eval_share=config.eval_share,
        bad_data=config.bad_data,
        cache=config.cache,
    )


def build_method(config: RunConfig, data: ImageData) -> Method:
    """Build the recipe's method; raise UserError if no method has that name, or if its options are wrong."""
    if config.method not in METHODS:
        raise UserError(f"unknown method '{config.method}'; {nearest(config.method, METHODS)}")
    train_shapes = {data.train_shape(epoch) for epoch in range(config.epochs)} - {data.input_shape}
    return METHODS[config.method](Task(config, len(data.class_names), data.input_shape, tuple(sorted(train_shapes))))


def interrupted_phase(phases: Phases, state: TrainState, seed: int) -> Phase:
    """Return the phase in which a checkpoint was taken, with its own state restored; its weights are not loaded.

    Raises UserError if the method has no such phase, or if its network is another one.
    """
    phase = next_phase(phases, None, seed)
    while phase is not None and phase.name != state.progress.phase:
        finished = state.finished.get(phase.name)
        # Final weights are not stored: the interrupted phase has inherited what it needs of them.
        result = finished and PhaseResult(phase.module, finished.epochs_run, state.decision_of(phase.name))
        phase = next_phase(phases, result, seed) if result else None
    if phase is None:
        raise UserError(
            f"the checkpoint was taken in phase '{state.progress.phase}', which the method does not reach now: begin a "
            "new run"
        )
    # Before weights are loaded: the phase's own state may decide what they mean (thresholds, frozen gates).
    try:
        phase.load_extra_state(state.phase_state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the checkpoint lacks what phase '{phase.name}' needs to go on: {one_line(str(error))}"
        ) from error
    state.check_fits(phase.module)
    return phase
