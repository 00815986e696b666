"""Schedules: a value as a function of the epoch, a weight or the side of images (a leaf).

In a recipe a schedule is a number (constant), or an object:

    {"kind": "ramp", "start": 0, "end": 1, "from_epoch": 2, "to_epoch": 4}
    {"kind": "steps", "values": [[0, 0], [125, 2], [190, 3]]}

The second is the paper's "lambda up" (arXiv 2302.10798, Table 5): 0 until epoch 125, then 2, from 190 on 3.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    Tag,
    model_validator,
)


class _Schedule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Constant(_Schedule):
    """The same value at all times."""

    kind: Literal["constant"] = "constant"
    value: NonNegativeFloat

    def at(self, epoch: float) -> float:
        """Return the value at ``epoch`` (epochs since the start, fractions included)."""
        return self.value

    def scaled(self, factor: float) -> Constant:
        """Return the schedule for a run of ``factor`` times the length."""
        return self


class Ramp(_Schedule):
    """``start`` before ``from_epoch``, ``end`` after ``to_epoch``, a straight line between them."""

    kind: Literal["ramp"] = "ramp"
    start: NonNegativeFloat = 0.0
    end: NonNegativeFloat
    from_epoch: NonNegativeFloat = 0.0
    to_epoch: NonNegativeFloat

    @model_validator(mode="after")
    def _ordered(self) -> Ramp:
        if self.to_epoch < self.from_epoch:
            raise ValueError(f"a ramp's to_epoch ({self.to_epoch}) lies before its from_epoch ({self.from_epoch})")
        return self

    def at(self, epoch: float) -> float:
        """Return the value at ``epoch``."""
        if epoch >= self.to_epoch:
            return self.end
        if epoch <= self.from_epoch:
            return self.start
        share = (epoch - self.from_epoch) / (self.to_epoch - self.from_epoch)
        return self.start + share * (self.end - self.start)

    def scaled(self, factor: float) -> Ramp:
        """Return the schedule for a run of ``factor`` times the length."""
        return self.model_copy(update={"from_epoch": self.from_epoch * factor, "to_epoch": self.to_epoch * factor})


class Steps(_Schedule):
    """``values`` is a list of [epoch, value]: each value holds from its epoch on; 0 before the first."""

    kind: Literal["steps"] = "steps"
    values: tuple[tuple[NonNegativeFloat, NonNegativeFloat], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Steps:
        epochs = [epoch for epoch, _ in self.values]
        if epochs != sorted(epochs):
            raise ValueError(f"the epochs of a steps schedule must rise, got {epochs}")
        return self

    def at(self, epoch: float) -> float:
        """Return the value at ``epoch``."""
        return ([0.0] + [value for start, value in self.values if epoch >= start])[-1]

    def scaled(self, factor: float) -> Steps:
        """Return the schedule for a run of ``factor`` times the length."""
        return Steps(values=tuple((epoch * factor, value) for epoch, value in self.values))


KINDS = ("constant", "ramp", "steps")
LARGEST_SIDE = 2**13  # pixels; images with longer sides are refused anyway: they may be an attack on memory


def _number_is_constant(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Plain data, which pydantic validates with the path of the field; a model's own error would span lines.
    return {"kind": "constant", "value": value} if is_number else value


def _above_zero(schedule: Constant | Ramp | Steps) -> Constant | Ramp | Steps:
    if isinstance(schedule, Steps):
        # Before its first epoch it is 0.
        lowest = min(schedule.at(0), *(value for _, value in schedule.values))
    else:
        lowest = schedule.value if isinstance(schedule, Constant) else min(schedule.start, schedule.end)
    if not lowest:
        raise ValueError("must be above 0 at all times")
    return schedule


Schedule = Annotated[
    Annotated[Constant | Ramp | Steps, Field(discriminator="kind")], BeforeValidator(_number_is_constant)
]
PositiveSchedule = Annotated[Schedule, AfterValidator(_above_zero)]


def _kind_of(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", "constant")


def _whole_pixels(schedule: Ramp | Steps) -> Ramp | Steps:
    _above_zero(schedule)
    sides = [schedule.start, schedule.end] if isinstance(schedule, Ramp) else [side for _, side in schedule.values]
    if odd := [side for side in sides if side != int(side) or side > LARGEST_SIDE]:
        raise ValueError(f"{odd[0]:g} is no side in pixels: expected whole numbers from 1 to {LARGEST_SIDE}")
    return schedule


# The side of square images in pixels: a number, or a schedule of whole numbers.
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Sides = Annotated[
    Annotated[Side, Tag("constant")]
    | Annotated[Ramp, AfterValidator(_whole_pixels), Tag("ramp")]
    | Annotated[Steps, AfterValidator(_whole_pixels), Tag("steps")],
    Discriminator(_kind_of, custom_error_type="kind", custom_error_message="no schedule: its kind is ramp or steps"),
]


def side_at(sides: int | Ramp | Steps | None, epoch: float) -> int | None:
    """Return the side of images in pixels in an epoch, that of a ramp to the nearest pixel; None: as they are."""
    return round(sides.at(epoch)) if isinstance(sides, Ramp | Steps) else sides
