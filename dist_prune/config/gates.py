"""Sections about gates: where they stand, how a MACs budget is met, when units are decided."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dist_prune.config.schedules import Constant, PositiveSchedule
from dist_prune.config.section import Section


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
    temperature: PositiveSchedule = Field(
        Constant(value=1.0), description="of the gumbel head, over the epochs; above 0"
    )
    dense_layers: Literal[1, 2] = Field(2, description="dense layers of a gating module")
    hidden: int = Field(16, ge=1, le=2**16, description="width of a gating module with two dense layers")
    flatten: bool | None = Field(
        None, description="channel gates: read flattened maps instead of pooled ones; null: where that is cheap"
    )
    open_bias: float | None = Field(
        None,
        ge=-100,
        le=100,
        description="initial bias of the last dense layer; null: 0 under a budget, else 1 as in the paper",
    )
    backprop_to_input: bool | None = Field(
        None,
        description="gradients of gates flow into the maps they read; null: not under a budget, else as in the paper",
    )
    logit_scale: float | None = Field(
        None,
        gt=0,
        le=100,
        description="factor on what the last dense layer reads; null: 0.1 under a budget, else 1 as in the paper",
    )


class BudgetConfig(Section):
    """Phases of a MACs budget, in fractions of the run."""

    warmup_end: float = Field(0.05, ge=0, lt=1, description="gates are held open until then")
    prune_start: float = Field(0.15, ge=0, lt=1, description="pruning begins")
    prune_end: float = Field(0.4, gt=0, lt=1, description="pruning ends: the budget is met")
    polarize_end: float = Field(0.6, gt=0, le=1, description="polarization has its full weight")
    allow_empty: bool = Field(False, description="channel sites may lose their last channel, stages their last layer")

    @model_validator(mode="after")
    def _ordered(self) -> BudgetConfig:
        if not self.warmup_end <= self.prune_start < self.prune_end < self.polarize_end:
            raise ValueError("budget: warmup_end <= prune_start < prune_end < polarize_end is needed")
        return self


class FreezeConfig(Section):
    """When units are decided and stop costing compute."""

    after: int | None = Field(
        None,
        ge=0,
        le=10**9,
        description="steps in a row in which all samples agree on a unit; 0: never; null: 50 under a budget, else 0",
    )
    open_from: float = Field(
        0.4, ge=0, le=1, description="fraction of the run before which no unit is decided to stay open"
    )
    thaw_after: int | None = Field(
        None, ge=1, le=10**9, description="steps after which a decided unit must be decided again; null: never"
    )
    collapse: bool = Field(True, description="collapse in flight once all units are decided")
    collapse_epoch: int | None = Field(
        None, ge=1, le=10**6, description="collapse in flight after this epoch, whatever is decided by then"
    )
