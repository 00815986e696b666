"""Sections about the optimizer and its learning rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dist_prune.config.section import Section

_Factor = Annotated[float, Field(gt=0, le=100)]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class LrConfig(Section):
    """The learning rate over the epochs of a phase."""

    kind: Literal["steps", "cosine", "one_cycle"] = Field(
        "steps",
        description="steps at milestones; cosine down to 0; one_cycle up, then down to nearly 0 (arXiv 1708.07120)",
    )
    milestones: tuple[Annotated[int, Field(ge=0, le=10**6)], ...] = Field(
        (60, 120, 160), description="steps: epochs after which the rate is multiplied by gamma"
    )
    gamma: _Factor | tuple[_Factor, ...] = Field(
        0.1, description="steps: factor at each milestone, or a list with one factor per milestone"
    )
    warmup_share: float = Field(0.3, gt=0, lt=1, description="one_cycle: fraction of the run in which the rate rises")
    warmup_epochs: float = Field(
        0.0, ge=0, le=10**6, description="epochs of linear warm-up before the schedule, of any kind"
    )

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
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd: momentum")
    nesterov: bool = Field(False, description="sgd: Nesterov's form of momentum")
    betas: tuple[_Beta, _Beta] = Field((0.9, 0.999), description="adamw: decay rates of the two moments")
    weight_decay: float = Field(5e-4, ge=0, le=100, description="weight decay (adamw: decoupled)")
    decay_gates_and_norms: bool = Field(
        True, description="whether weight decay includes the parameters of gates and norms"
    )

    @model_validator(mode="after")
    def _consistent_optimizer(self) -> OptimizerConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self
