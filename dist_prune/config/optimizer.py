"""Sections about the optimizer and its learning rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dist_prune.config.section import Section


class LrConfig(Section):
    """The learning rate over the epochs of a phase."""

    kind: Literal["steps", "cosine", "one_cycle"] = Field(
        "steps",
        description="steps at milestones; cosine down to 0; one_cycle up, then down to nearly 0 (arXiv 1708.07120)",
    )
    milestones: tuple[Annotated[int, Field(ge=0, le=10**6)], ...] = Field(
        (60, 120, 160), description="steps: epochs after which the rate is multiplied by gamma"
    )
    gamma: float = Field(0.1, gt=0, le=10, description="steps: factor at each milestone")
    warmup_share: float = Field(
        0.3, gt=0, lt=1, description="one_cycle: fraction of the run in which the rate rises"
    )


class OptimizerConfig(Section):
    """The optimizer: SGD with momentum and weight decay."""

    lr: float = Field(0.1, gt=0, le=1000, description="learning rate at its highest")
    lr_schedule: LrConfig = LrConfig()
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")
    weight_decay: float = Field(5e-4, ge=0, le=100, description="L2 penalty on weights")
    decay_gates_and_norms: bool = Field(
        True, description="whether weight decay includes the parameters of gates and norms"
    )

    @model_validator(mode="after")
    def _consistent_optimizer(self) -> OptimizerConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self
