"""RunConfig: a recipe in sections, typed and validated.

The DeepSpeed JSON owns ZeRO, precision, micro-batch, clipping and offload; everything else is here.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dist_prune.config.schedules import LARGEST_SIDE, Constant, PositiveSchedule, Schedule, Side, Sides

# Ranges of numbers.
_Side = Annotated[int, Field(ge=0, le=LARGEST_SIDE)]
_Count = Annotated[int, Field(ge=1, le=10**9)]
_Epochs = Annotated[int, Field(ge=1, le=10**6)]
_Minutes = Annotated[float, Field(gt=0, le=10**6)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Factor = Annotated[float, Field(gt=0, le=100)]
_BelowOne = Annotated[float, Field(ge=0, lt=1)]
_Alpha = Annotated[float, Field(ge=0, le=1000)]


class Section(BaseModel):
    """A frozen group of fields, the base of everything in a recipe: no unknown keys, no numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """The images of a run; where only their location matters, a text stands for the section."""

    location: str = Field(description="data set: a name, a folder of shards, its index, or a pattern or URL of shards")
    order: Literal["exact", "stream"] = Field(
        "exact", description="exact: every sample once, by the index; stream: as webdataset reads, without an index"
    )
    label: str | None = Field(
        None, description="extension of the members with labels: cls, txt or json; null: whichever there are"
    )
    label_field: str = Field("", description="field of a json member that is the label; empty: whichever there is")
    classes: str | _Count | None = Field(
        None, description="a file with the names of the classes, one a line, or their number; null: by the labels"
    )
    samples: _Count | None = Field(None, description="stream: training images of an epoch; null: as an index says")
    shuffle: _Count = Field(1000, description="stream: images in the shuffle buffer of each reading process")

    @model_validator(mode="before")
    @classmethod
    def _of_location(cls, given: Any) -> Any:
        return {"location": given} if isinstance(given, str) else given

    @property
    def is_remote(self) -> bool:
        """True for a URL or a command."""
        return "://" in self.location or self.location.startswith("pipe:")


class AugmentConfig(Section):
    """Random changes of training images."""

    crop_padding: _Side = Field(0, description="shift images by up to this many pixels; 0: never")
    flip: bool = Field(False, description="mirror half of the images")
    random_resized_crop: bool = Field(False, description="cut out a random part of the image and scale it")
    crop_area: float = Field(0.08, gt=0, le=1, description="random_resized_crop: least share of the image's area")
    policy: Literal["none", "randaugment", "trivialaugment"] = Field("none", description="augmentation by torchvision")
    cutout: _Side = Field(0, description="side of a blanked square, in pixels; 0: none")
    erasing: float = Field(0.0, ge=0, le=1, description="share of the images of which a random rectangle is blanked")
    mixup: _Alpha = Field(0.0, description="alpha of mixup's Beta(alpha, alpha); 0: never")
    cutmix: _Alpha = Field(0.0, description="alpha of CutMix; 0: never; with mixup, each in half of the steps")


class CacheConfig(Section):
    """What is kept on this machine: shards that are downloaded, and decoded pixels of tiny images."""

    folder: str | None = Field(None, description="cache folder; null: in the system's temporary folder")
    gigabytes: float = Field(16.0, gt=0, le=10**6, description="size of the cache")
    timeout: float = Field(60.0, gt=0, le=86400, description="seconds without a byte until a transfer fails")
    retries: int = Field(5, ge=0, le=1000, description="attempts after a failed transfer")
    decoded_gigabytes: float = Field(
        2.0, ge=0, le=10**6, description="size of the cache of decoded images, where all have one size; 0: none"
    )


class GatesConfig(Section):
    """The gates of the consensus method."""

    kind: Literal["layer", "channel", "none"] = Field(
        "layer", description="what a gate switches: residual layers or channels; none trains the dense network"
    )
    position: Literal["before", "between", "after"] = Field(
        "between", description="channel gates: which activations of a block they stand behind"
    )
    head: Literal["ste", "gumbel", "bernoulli"] = Field(
        "ste", description="how a gate decides: straight-through, Gumbel-softmax, or Bernoulli threshold"
    )
    temperature: PositiveSchedule = Field(Constant(value=1), description="of the gumbel head, over the epochs; above 0")
    dense_layers: Literal[1, 2] = Field(2, description="dense layers of a gating module")
    hidden: int = Field(16, ge=1, le=2**16, description="width of a gating module with two dense layers")
    flatten: bool | None = Field(None, description="channel gates: read flattened, not pooled maps; null: where cheap")
    open_bias: Annotated[float, Field(ge=-100, le=100)] | None = Field(
        None, description="initial bias of the last dense layer; null: 0 under a budget, else 1 as in the paper"
    )
    backprop_to_input: bool | None = Field(
        None,
        description="gradients of gates flow into the maps they read; null: not under a budget, else as in the paper",
    )
    logit_scale: _Factor | None = Field(
        None, description="factor on what the last dense layer reads; null: 0.1 under a budget, else 1 as in the paper"
    )


class BudgetConfig(Section):
    """Phases of a MACs budget, in fractions of the run."""

    warmup_end: _Fraction = Field(0.05, description="gates are held open until then")
    prune_start: _Fraction = Field(0.15, description="pruning begins")
    prune_end: _Fraction = Field(0.4, description="pruning ends: the budget is met")
    polarize_end: _Fraction = Field(0.6, description="polarization has its full weight")
    allow_empty: bool = Field(False, description="channel sites may lose their last channel, stages their last layer")

    @model_validator(mode="after")
    def _ordered(self) -> BudgetConfig:
        if not self.warmup_end <= self.prune_start < self.prune_end < self.polarize_end:
            raise ValueError("budget: warmup_end <= prune_start < prune_end < polarize_end is needed")
        return self


class FreezeConfig(Section):
    """When units are decided and stop costing compute."""

    after: Annotated[int, Field(ge=0, le=10**9)] | None = Field(
        None,
        description="steps in a row in which all samples agree on a unit; 0: never; null: 50 under a budget, else 0",
    )
    open_from: _Fraction = Field(0.4, description="fraction of the run before which no unit is decided to stay open")
    thaw_after: _Count | None = Field(None, description="steps until a decided unit must be decided again; null: never")
    collapse: bool = Field(True, description="collapse in flight once all units are decided")
    collapse_epoch: _Epochs | None = Field(None, description="collapse in flight after this epoch, whatever is decided")


class LrConfig(Section):
    """The learning rate over the epochs of a phase."""

    kind: Literal["steps", "cosine", "one_cycle"] = Field(
        "steps",
        description="steps at milestones; cosine down to 0; one_cycle up, then down to nearly 0 (arXiv 1708.07120)",
    )
    milestones: tuple[Annotated[int, Field(ge=0, le=10**6)], ...] = Field(
        (60, 120, 160), description="steps: epochs after which the rate is multiplied by gamma"
    )
    gamma: _Factor | tuple[_Factor, ...] = Field(0.1, description="steps: factor at milestones, or a list of factors")
    warmup_share: float = Field(0.3, gt=0, lt=1, description="one_cycle: fraction of the run in which the rate rises")
    warmup_epochs: float = Field(0.0, ge=0, le=10**6, description="epochs of linear warm-up before any schedule")

    @model_validator(mode="after")
    def _one_factor_per_milestone(self) -> LrConfig:
        if isinstance(self.gamma, tuple) and len(self.gamma) != len(self.milestones):
            raise ValueError(f"{len(self.milestones)} milestones need as many factors in gamma, not {len(self.gamma)}")
        return self


class OptimizerConfig(Section):
    """The optimizer of a phase; a phase that brings none of its own has the recipe's."""

    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd or adamw")
    lr: float = Field(0.1, gt=0, le=1000, description="learning rate at its highest")
    lr_schedule: LrConfig = LrConfig()
    momentum: _BelowOne = Field(0.9, description="sgd: momentum")
    nesterov: bool = Field(False, description="sgd: Nesterov's form of momentum")
    betas: tuple[_BelowOne, _BelowOne] = Field((0.9, 0.999), description="adamw: decay rates of the two moments")
    weight_decay: float = Field(5e-4, ge=0, le=100, description="weight decay (adamw: decoupled)")
    decay_gates_and_norms: bool = Field(True, description="weight decay includes the parameters of gates and norms")

    @model_validator(mode="after")
    def _consistent_optimizer(self) -> OptimizerConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


# Fields that change no result: they may differ when a run is resumed.
# Where the data are is one of them since shards are identified by their fingerprint, which is compared by itself.
RESUMABLE_FIELDS = frozenset({
    "data.location", "eval_data", "allow_pipes", "log_every", "checkpoint_every", "checkpoint_minutes",
    "keep_checkpoints", "keep_best", "mask_samples",
    "workers", "bad_data", "max_skipped", "max_bad_steps", "rank_timeout", "cache", "grid_intensity",
    "checkpoint_activations", "compile",
})  # fmt: skip


def is_resumable(key: str) -> bool:
    """Return True if a field, by its dotted key, may differ when a run is resumed: it changes no result."""
    return key in RESUMABLE_FIELDS or key.partition(".")[0] in RESUMABLE_FIELDS


class RunConfig(OptimizerConfig):
    """One run. Defaults are the paper's settings for CIFAR-10 (arXiv 2302.10798, section 5.1)."""

    name: str = Field(description="name of the recipe")
    data: DataConfig
    eval_data: str | None = Field(
        None, description="where the images to evaluate on are; null: the test or validation split of data"
    )
    allow_pipes: bool = Field(False, description="data may be pipe: commands, which a shell runs")
    model: str = Field(description="network, by name")
    model_args: dict[str, Any] = Field({}, description="arguments of the network")
    method: str = Field("consensus", description="way of training, by name")
    method_args: dict[str, Any] = Field({}, description="options of the method, its own")
    gates: GatesConfig = GatesConfig()
    epochs: _Epochs = Field(350, description="passes over the training images")
    seed: int = Field(1, ge=0, lt=2**32, description="seed of weights, order, augmentation and gate noise")
    global_batch_size: int = Field(256, ge=2, le=2**24, description="images of an optimizer step, all ranks together")
    label_smoothing: _BelowOne = Field(0.0, description="probability mass spread over all classes")

    target_macs: float | None = Field(
        None, gt=0, lt=1, description="MACs budget: fraction of the dense MACs that is kept; null: no budget"
    )
    budget: BudgetConfig = BudgetConfig()
    freeze: FreezeConfig = FreezeConfig()
    polarization: Schedule | None = Field(None, description="lambda_polar by epoch; null: the budget's own, or else 1")
    activation: Schedule = Field(Constant(value=0.0), description="lambda_act by epoch")
    mask_samples: int = Field(
        2048, ge=1, le=2**40, description="training images that vote on the mask of an epoch; at the end all do"
    )
    round_to: int = Field(1, ge=1, le=2**16, description="keep multiples of this many channels; may exceed target_macs")

    eval_share: float = Field(
        0.0, ge=0, lt=1, description="share of the training images to evaluate on, where there is no test split"
    )
    image_size: Sides | None = Field(
        None, description="side of the square images in pixels, or a schedule of it by epoch; null: as they are"
    )
    eval_size: Side | None = Field(None, description="side of the images in evaluation; null: image_size, the last one")
    eval_crop: float | None = Field(
        None, ge=0.05, le=1, description="share of the side that evaluation keeps; null: 0.875, or all of equal images"
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="how images are scaled")
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(1, ge=0, le=1024, description="data-loading processes per rank")
    channels_last: bool = Field(True, description="memory format of images and weights")
    bad_data: Literal["error", "skip"] = Field("error", description="unreadable images end the run or are skipped")
    max_skipped: int = Field(100, ge=0, le=2**40, description="bad_data=skip: images skipped in an epoch at most")
    cache: CacheConfig = CacheConfig()

    log_every: _Count = Field(10, description="steps between two records")
    checkpoint_every: _Count | None = Field(None, description="steps between checkpoints, besides one per epoch")
    checkpoint_minutes: _Minutes | None = Field(None, description="minutes between checkpoints, besides one per epoch")
    keep_checkpoints: _Count = Field(2, description="newest checkpoints that are kept")
    keep_best: bool = Field(False, description="also keep the checkpoint with the highest test accuracy")
    max_bad_steps: int = Field(10, ge=0, le=10**6, description="steps in a row with NaN or inf that may be skipped")
    rank_timeout: float = Field(600.0, gt=0, le=7 * 86400, description="seconds without an answer until a rank is lost")
    grid_intensity: float | None = Field(None, gt=0, le=10**5, description="grams of CO2 per kWh, to report emissions")
    compile: bool = Field(False, description="train through torch.compile")
    checkpoint_activations: bool = Field(
        False, description="recompute blocks in backward instead of keeping their activations: less memory, more time"
    )

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.compile and self.checkpoint_activations:
            raise ValueError("checkpoint_activations=true needs compile=false: the compiler recomputes by itself")
        places = self.data.location, self.eval_data or ""
        if not self.allow_pipes and any(place.startswith("pipe:") for place in places):
            raise ValueError("pipe: runs a shell command: it needs allow_pipes=true")
        if self.eval_share and self.data.order == "stream":
            raise ValueError("eval_share needs data.order=exact: the samples of a stream have no numbers")
        if self.eval_data and self.eval_share:
            raise ValueError("eval_data and eval_share exclude each other: both say what to evaluate on")
        # A collapse before the budget is met would keep more than the budget allows.
        at, first = self.freeze.collapse_epoch, math.ceil(self.budget.prune_end * self.epochs)
        if at is not None and self.target_macs is not None and at < first:
            raise ValueError(
                f"freeze.collapse_epoch={at} comes before budget.prune_end, which is met after epoch {first}"
            )
        return self
