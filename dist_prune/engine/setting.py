"""What a run is made of, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dist_prune import distributed
from dist_prune.config import RunConfig
from dist_prune.data import ImageData
from dist_prune.engine.ds_config import Batching
from dist_prune.measure import Costs
from dist_prune.methods import Method
from dist_prune.monitor.records import RunFolder


@dataclass(frozen=True)
class Setting:
    """What a run is made of; the same on all ranks but for the device."""

    config: RunConfig
    ds_config: dict[str, Any]
    batching: Batching
    data: ImageData
    method: Method
    costs: Costs
    device: torch.device
    folder: RunFolder

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.data.steps_per_epoch(self.config.global_batch_size)

    def train_batches(self, epoch: int, skip_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's micro-batches of an epoch, without those of its first ``skip_steps`` steps."""
        batching = self.batching
        return self.data.train_batches(
            epoch,
            micro_batch=batching.micro,
            global_batch=batching.global_batch,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            skip_batches=skip_steps * batching.accumulation,
        )

    def eval_batches(self, split: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of a split, every sample exactly once; ``limit``: of its first samples."""
        return self.data.eval_batches(
            split,
            batch_size=max(self.batching.micro, 64),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            limit=limit,
        )


@dataclass
class Position:
    """Where a run stands. step counts over all phases, batch the optimizer steps within the epoch."""

    phase: str = ""
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
