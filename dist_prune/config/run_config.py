"""RunConfig: a recipe, typed and validated.

The DeepSpeed JSON owns ZeRO, precision, micro-batch, clipping and offload; everything else is here.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from dist_prune.config.data import LARGEST_SIDE, AugmentConfig, CacheConfig
from dist_prune.config.gates import BudgetConfig, FreezeConfig, GatesConfig
from dist_prune.config.optimizer import OptimizerConfig
from dist_prune.config.schedules import Constant, WeightSchedule

# Fields that change no result: they may differ when a run is resumed.
# `data` is one of them since shards are identified by their fingerprint, which is compared by itself.
RESUMABLE_FIELDS = frozenset({
    "data", "log_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "keep_best", "mask_samples",
    "workers", "bad_data", "max_skipped", "max_bad_steps", "rank_timeout", "cache", "grid_intensity",
    "checkpoint_activations",
    "compile",
})  # fmt: skip


class RunConfig(OptimizerConfig):
    """One run. Defaults are the paper's settings for CIFAR-10 (arXiv 2302.10798, section 5.1)."""

    name: str = Field(description="name of the recipe")
    data: str = Field(description="data set: a name, a folder of shards, its index, or a pattern or URL of shards")
    model: str = Field(description="network, by name")
    model_args: dict[str, Any] = Field({}, description="arguments of the network")
    method: str = Field("consensus", description="way of training, by name")
    method_args: dict[str, Any] = Field({}, description="options of the method, its own")
    gates: GatesConfig = GatesConfig()
    epochs: int = Field(350, ge=1, le=10**6, description="passes over the training images")
    seed: int = Field(1, ge=0, lt=2**32, description="seed of weights, order, augmentation and gate noise")
    global_batch_size: int = Field(256, ge=2, le=2**24, description="images of an optimizer step, all ranks together")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="probability mass spread over all classes")

    target_macs: float | None = Field(
        None, gt=0, lt=1, description="MACs budget: fraction of the dense MACs that is kept; null: no budget"
    )
    budget: BudgetConfig = BudgetConfig()
    freeze: FreezeConfig = FreezeConfig()
    polarization: WeightSchedule | None = Field(
        None, description="lambda_polar over the epochs; null: the budget's own schedule, or 1 without a budget"
    )
    activation: WeightSchedule = Field(Constant(value=0.0), description="lambda_act over the epochs")
    mask_samples: int = Field(
        2048, ge=1, le=2**40, description="training images that vote on the mask of an epoch; at the end all do"
    )
    round_to: int = Field(
        1, ge=1, le=2**16, description="keep multiples of this many channels; may end above target_macs"
    )

    image_size: int | None = Field(
        None, ge=1, le=LARGEST_SIDE, description="side of the square images in pixels; null: as they are"
    )
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(1, ge=0, le=1024, description="data-loading processes per rank")
    channels_last: bool = Field(True, description="memory format of images and weights")
    bad_data: Literal["error", "skip"] = Field("error", description="unreadable images end the run or are skipped")
    max_skipped: int = Field(100, ge=0, le=2**40, description="bad_data=skip: images skipped in an epoch at most")
    cache: CacheConfig = CacheConfig()

    log_every: int = Field(10, ge=1, le=10**9, description="steps between two records")
    checkpoint_every: int | None = Field(
        None, ge=1, le=10**9, description="steps between two checkpoints, besides one per epoch"
    )
    checkpoint_minutes: float | None = Field(
        None, gt=0, le=10**6, description="minutes between two checkpoints, besides one per epoch"
    )
    keep_checkpoints: int = Field(2, ge=1, le=10**6, description="newest checkpoints that are kept")
    keep_best: bool = Field(False, description="also keep the checkpoint with the highest test accuracy")
    max_bad_steps: int = Field(
        10, ge=0, le=10**6, description="steps in a row that may be skipped because loss or gradients are not finite"
    )
    rank_timeout: float = Field(
        600.0, gt=0, le=7 * 86400, description="seconds without an answer of a rank until the run ends"
    )
    grid_intensity: float | None = Field(
        None, gt=0, le=10**5, description="grams of CO2 per kWh of electricity, to report emissions"
    )
    compile: bool = Field(False, description="train through torch.compile")
    checkpoint_activations: bool = Field(
        False, description="recompute blocks in backward instead of keeping their activations: less memory, more time"
    )

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.compile and self.checkpoint_activations:
            raise ValueError("checkpoint_activations=true needs compile=false: the compiler recomputes by itself")
        # A collapse before the budget is met would keep more than the budget allows.
        at, first = self.freeze.collapse_epoch, math.ceil(self.budget.prune_end * self.epochs)
        if at is not None and self.target_macs is not None and at < first:
            raise ValueError(
                f"freeze.collapse_epoch={at} comes before budget.prune_end, which is met after epoch {first}"
            )
        return self
