"""RunConfig: what a recipe says, typed and validated (a leaf).

The DeepSpeed JSON owns ZeRO, precision, micro-batch, clipping and offload; everything else is here.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from dist_prune.config.schedules import Constant, Schedule
from dist_prune.errors import UserError, first_problem, nearest

# Options that say how a run computes, what it records and what it puts up with: a resumed run may have others.
RESUMABLE_FIELDS = frozenset({
    "log_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "keep_best", "mask_samples",
    "workers", "bad_data", "max_skipped", "max_bad_steps", "rank_timeout", "cache", "grid_intensity",
    "compile",
})  # fmt: skip
_LARGEST_SIDE = 2**13  # pixels; images of more are refused as attacks on memory anyway


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GatesConfig(_Section):
    """The gates of the consensus method; ``kind`` none trains the dense network.

    position, dense_layers, flatten: see ``dist_prune.attach_gates``; flatten applies to channel gates;
    temperature: of Gumbel-softmax over the epochs.
    """

    kind: Literal["layer", "channel", "none"] = "layer"
    position: Literal["before", "between", "after"] = "between"
    head: Literal["ste", "gumbel", "bernoulli"] = "ste"
    temperature: Schedule = Constant(value=1.0)
    dense_layers: Literal[1, 2] = 2
    hidden: int = Field(16, ge=1, le=2**16)
    flatten: bool | None = None
    open_bias: float | None = 1.0


class BudgetConfig(_Section):
    """When, in shares of the run, a MACs budget does what (see ``dist_prune.gates.Timeline``).

    allow_empty: channel sites may lose their last channel, stages of a network their last layer.
    """

    listen: float = Field(0.05, ge=0, lt=1)
    begin: float = Field(0.15, ge=0, lt=1)
    end: float = Field(0.4, gt=0, lt=1)
    settled: float = Field(0.6, gt=0, le=1)
    allow_empty: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> BudgetConfig:
        if not self.listen <= self.begin < self.end < self.settled:
            raise ValueError("budget: listen <= begin < end < settled is needed")
        return self


class FreezeConfig(_Section):
    """When units are decided, and stop costing (see ``dist_prune.gates.Freezer``).

    after: steps in a row in which all samples agree on a unit, 0 for never; None: 50 under a budget, never without
    one. open_from: share of the run before which no unit is decided to stay open (a budget's ``end``, if that
    is later); thaw_after: steps after which a decided unit has to decide anew. collapse: whether the network
    is collapsed in flight, at the end of the epoch in which all units are decided; collapse_epoch: after that epoch
    whatever is decided.
    """

    after: int | None = Field(None, ge=0)
    open_from: float = Field(0.4, ge=0, le=1)
    thaw_after: int | None = Field(None, ge=1)
    collapse: bool = True
    collapse_epoch: int | None = Field(None, ge=1)


class AugmentConfig(_Section):
    """Random changes of training images.

    random_resized_crop: a part of the image, scaled; crop_padding: shifts by up to so many pixels; flip: mirror
    images; policy: torchvision's; cutout: the side of a square that is blanked; mixup, cutmix: images mixed with
    others, by shares from Beta(a, a), with 0 for never (with both, each in half of the steps).
    """

    crop_padding: int = Field(0, ge=0, le=_LARGEST_SIDE)
    flip: bool = False
    random_resized_crop: bool = False
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    cutout: int = Field(0, ge=0, le=_LARGEST_SIDE)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)


class CacheConfig(_Section):
    """Where shards that are downloaded are kept (default: the system's temporary folder), and how much of them.

    A transfer fails after ``timeout`` seconds without a byte, and is tried again ``retries`` times.
    """

    folder: str | None = None
    gigabytes: float = Field(16.0, gt=0)
    timeout: float = Field(60.0, gt=0)
    retries: int = Field(5, ge=0)


class LrConfig(_Section):
    """The learning rate over the epochs of a phase.

    steps: times ``gamma`` at each of ``milestones`` (epochs; ``gamma`` may be a list, one factor per milestone);
    cosine: down to 0 at the end; one_cycle: up for ``warmup_share`` of the run, then down to nearly 0 (arXiv
    1708.07120). warmup_epochs: before any of these, the rate rises linearly; milestones count from the first epoch.
    """

    kind: Literal["steps", "cosine", "one_cycle"] = "steps"
    milestones: tuple[int, ...] = (60, 120, 160)
    gamma: PositiveFloat | tuple[PositiveFloat, ...] = 0.1
    warmup_share: float = Field(0.3, gt=0, lt=1)
    warmup_epochs: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _one_factor_per_milestone(self) -> LrConfig:
        if isinstance(self.gamma, tuple) and len(self.gamma) != len(self.milestones):
            raise ValueError(
                f"lr_schedule: {len(self.milestones)} milestones need as many factors in gamma, not {len(self.gamma)}"
            )
        return self


class OptimizerConfig(_Section):
    """The optimizer of a phase and its learning rate over time; a recipe has one for all phases that bring none.

    optimizer: sgd (momentum, nesterov) or adamw (betas). decay_gates_and_norms: whether weight decay also acts on
    the parameters of gates and normalization layers.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0)
    lr_schedule: LrConfig = LrConfig()
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(5e-4, ge=0)
    decay_gates_and_norms: bool = True

    @model_validator(mode="after")
    def _consistent_optimizer(self) -> OptimizerConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas lie in [0, 1), not {self.betas}")
        return self


class RunConfig(OptimizerConfig):
    """One run. Defaults are the paper's settings for CIFAR-10 (arXiv 2302.10798, section 5.1).

    target_macs: the share of the dense MACs that the sliced network may cost (whole units may end beside it);
    polarization, activation: weights of the loss terms over the epochs; a budget brings a polarization of its
    own where none is given (without one it is 1); mask_samples: training images that decide the mask at each
    evaluation (at the end all of them do); round_to: numbers of channels that stay are multiples of it (or all of
    them), which can end above target_macs. bad_data: whether images that cannot be read end the run or are left
    out, up to max_skipped of them in an epoch. A checkpoint is written after each epoch, and every checkpoint_every
    steps or checkpoint_minutes; the last keep_checkpoints stay, and with keep_best that of the epoch with the
    highest test accuracy. max_bad_steps: steps in a row that may be skipped since loss or gradients are not finite;
    rank_timeout: seconds after which a rank that does not answer ends the run. grid_intensity: grams of CO2 per kWh of
    the electricity, to say what the run emitted. compile: train through torch.compile.
    """

    name: str
    data: str
    model: str
    model_args: dict[str, Any] = {}
    method: str = "consensus"
    gates: GatesConfig = GatesConfig()
    epochs: int = Field(350, ge=1)
    seed: int = Field(1, ge=0, lt=2**32)
    global_batch_size: int = Field(256, ge=2)

    label_smoothing: float = Field(0.0, ge=0, lt=1)

    target_macs: float | None = Field(None, gt=0, lt=1)
    budget: BudgetConfig = BudgetConfig()
    freeze: FreezeConfig = FreezeConfig()
    polarization: Schedule | None = None
    activation: Schedule = Constant(value=0.0)
    mask_samples: int = Field(2048, ge=1)
    round_to: int = Field(1, ge=1)

    image_size: int | None = Field(None, ge=1, le=_LARGEST_SIDE)
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(1, ge=0)
    channels_last: bool = True
    bad_data: Literal["error", "skip"] = "error"
    max_skipped: int = Field(100, ge=0)
    cache: CacheConfig = CacheConfig()

    log_every: int = Field(10, ge=1)
    checkpoint_every: int | None = Field(None, ge=1)
    checkpoint_minutes: float | None = Field(None, gt=0)
    keep_checkpoints: int = Field(2, ge=1)
    keep_best: bool = False
    max_bad_steps: int = Field(10, ge=0)
    rank_timeout: float = Field(600.0, gt=0, le=7 * 86400)
    grid_intensity: float | None = Field(None, gt=0)
    compile: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.method == "consensus" and self.gates.kind == "none":
            object.__setattr__(self, "method", "dense")  # frozen for everyone else
        at, first = self.freeze.collapse_epoch, math.ceil(self.budget.end * self.epochs)
        if at is not None and self.target_macs is not None and at < first:
            raise ValueError(
                f"freeze.collapse_epoch={at} comes before budget.end, which is met after epoch {first}"
            )
        return self


def override(config: RunConfig, settings: list[str]) -> RunConfig:
    """``config`` with ``key=value`` settings applied; keys are dotted, values JSON or else plain text.

    Raises UserError for a malformed setting, an unknown key (naming the nearest) or a value out of range.
    """
    data = config.model_dump()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value")
        _assign(data, key.split("."), _parse(text), key)
    return read_config(data)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _assign(data: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for depth, part in enumerate(path):
        open_ended = path[0] == "model_args" and depth > 0
        if not isinstance(data, dict) or (part not in data and not open_ended):
            known = (
                [".".join([*path[:depth], name]) for name in data]
                if isinstance(data, dict)
                else list(_ALL_KEYS)
            )
            raise UserError(f"unknown recipe key '{key}'; {nearest('.'.join(path[: depth + 1]), known)}")
        if depth + 1 < len(path):
            data = data.setdefault(part, {}) if open_ended else data[part]
    data[path[-1]] = value


_ALL_KEYS = tuple(RunConfig.model_fields)


def read_config(data: Any) -> RunConfig:
    """A recipe from plain data, with defaults for what is newer than they are; raises UserError in one line."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        where, problem = first_problem(error)
        # What concerns several keys names them by itself.
        raise UserError(
            f"recipe key '{where}': {problem}" if where else problem.partition(" (got ")[0]
        ) from error
