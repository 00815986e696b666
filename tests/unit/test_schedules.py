"""Schedules of loss weights."""

import pytest
from pydantic import BaseModel, ValidationError

from dist_prune.config.schedules import Constant, Ramp, Schedule, Steps


class Recipe(BaseModel):
    weight: Schedule


def read(value):
    return Recipe(weight=value).weight


@pytest.mark.parametrize("value", [0, 2, 1.5])
def test_a_number_is_a_constant(value):
    schedule = read(value)
    assert isinstance(schedule, Constant)
    assert {schedule.at(epoch) for epoch in (0, 0.5, 100)} == {float(value)}


@pytest.mark.parametrize(
    ("epoch", "weight"), [(0, 1.0), (2, 1.0), (2.5, 1.5), (3, 2.0), (4, 3.0), (4.001, 3.0), (99, 3.0)]
)
def test_a_ramp_is_a_straight_line_between_two_epochs(epoch, weight):
    schedule = read({"kind": "ramp", "start": 1, "end": 3, "from_epoch": 2, "to_epoch": 4})
    assert schedule.at(epoch) == pytest.approx(weight)


def test_a_ramp_may_go_down_and_may_be_a_step():
    assert Ramp(start=3, end=1, from_epoch=0, to_epoch=2).at(1) == 2
    jump = Ramp(end=1, from_epoch=3, to_epoch=3)
    assert [jump.at(epoch) for epoch in (2.99, 3, 3.01)] == [0, 1, 1]


@pytest.mark.parametrize(("epoch", "weight"), [(0, 0), (124.99, 0), (125, 2), (189.9, 2), (190, 3), (349, 3)])
def test_steps_are_the_papers_rising_lambda(epoch, weight):
    assert read({"kind": "steps", "values": [[0, 0], [125, 2], [190, 3]]}).at(epoch) == weight


def test_before_the_first_step_the_value_is_zero():
    assert Steps(values=((2, 5),)).at(1.99) == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"kind": "ramp", "end": 1, "from_epoch": 4, "to_epoch": 2}, "before its from_epoch"),
        ({"kind": "ramp", "to_epoch": 2}, "end"),
        ({"kind": "steps", "values": [[5, 1], [2, 1]]}, "must rise"),
        ({"kind": "steps", "values": []}, "at least 1"),
        ({"kind": "wave"}, "wave"),
        ({"kind": "ramp", "end": 1, "to_epoch": 2, "speed": 3}, "speed"),
        (-1.0, "greater than or equal to 0"),
        ({"kind": "steps", "values": [[-1, 1]]}, "greater than or equal to 0"),
        (True, "weight"),
        ("fast", "weight"),
    ],
)
def test_what_is_no_schedule_is_refused(value, said):
    with pytest.raises(ValidationError, match=said):
        read(value)


@pytest.mark.parametrize(
    "schedule", [Constant(value=2.0), Ramp(end=1, to_epoch=3), Steps(values=((0, 0), (3, 1)))], ids=lambda s: s.kind
)
def test_schedules_survive_json(schedule):
    assert Recipe.model_validate_json(Recipe(weight=schedule).model_dump_json()).weight == schedule
