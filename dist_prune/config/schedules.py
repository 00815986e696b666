"""Schedules of loss weights: a value for every moment of training, in epochs (a leaf).

In a recipe a schedule is a number (constant), or an object:

    {"kind": "ramp", "start": 0, "end": 1, "from_epoch": 2, "to_epoch": 4}
    {"kind": "steps", "values": [[0, 0], [125, 2], [190, 3]]}

The second is the paper's "lambda up" (arXiv 2302.10798, Table 5): 0 until epoch 125, then 2, from 190 on 3.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class _Schedule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Schedule):
    """The same value at all times."""

    kind: Literal["constant"] = "constant"
    value: float

    def at(self, epoch: float) -> float:
        """The value at ``epoch`` (epochs since the start, fractions included)."""
        return self.value


class Ramp(_Schedule):
    """``start`` before ``from_epoch``, ``end`` after ``to_epoch``, a straight line between them."""

    kind: Literal["ramp"] = "ramp"
    start: float = 0.0
    end: float
    from_epoch: float = 0.0
    to_epoch: float

    @model_validator(mode="after")
    def _ordered(self) -> Ramp:
        if self.to_epoch < self.from_epoch:
            raise ValueError(
                f"a ramp's to_epoch ({self.to_epoch}) lies before its from_epoch ({self.from_epoch})"
            )
        return self

    def at(self, epoch: float) -> float:
        """The value at ``epoch``."""
        if epoch >= self.to_epoch:
            return self.end
        if epoch <= self.from_epoch:
            return self.start
        share = (epoch - self.from_epoch) / (self.to_epoch - self.from_epoch)
        return self.start + share * (self.end - self.start)


class Steps(_Schedule):
    """``values`` is a list of [epoch, value]: each value holds from its epoch on; 0 before the first."""

    kind: Literal["steps"] = "steps"
    values: tuple[tuple[float, float], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Steps:
        epochs = [epoch for epoch, _ in self.values]
        if epochs != sorted(epochs):
            raise ValueError(f"the epochs of a steps schedule must rise, got {epochs}")
        return self

    def at(self, epoch: float) -> float:
        """The value at ``epoch``."""
        reached = [value for start, value in self.values if epoch >= start]
        return reached[-1] if reached else 0.0


def _number_is_constant(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Constant(value=value) if is_number else value


Schedule = Annotated[
    Annotated[Constant | Ramp | Steps, Field(discriminator="kind")], BeforeValidator(_number_is_constant)
]
