"""Recipes: every one is valid, named after its function, and buildable."""

from operator import attrgetter

import pytest
import torch

from dist_prune import UserError, build_model
from dist_prune.config import RunConfig, without_effect
from dist_prune.config.schedules import Ramp, Steps
from dist_prune.methods import METHODS
from dist_prune.recipes import RECIPES, recipe
from dist_prune.recipes.catalog import short


def test_every_recipe_is_named_explained_valid_and_buildable():
    built = {}
    for name in RECIPES:
        config = recipe(name)
        assert config.name == name
        assert RECIPES[name].__doc__, name
        assert RunConfig.model_validate(config.model_dump(mode="json")) == config
        assert without_effect(config, METHODS[config.method].reads) == [], name
        key = (config.model, str(config.model_args))
        if key not in built:
            with torch.device("meta"):
                built[key] = build_model(config.model, num_classes=10, in_channels=3, **config.model_args)


@pytest.mark.parametrize(
    ("field", "full_length", "expected"),
    [
        ("polarization", Ramp(end=2, from_epoch=35, to_epoch=70), Ramp(end=2, from_epoch=1, to_epoch=2)),
        ("activation", Steps(values=((0, 0), (175, 1))), Steps(values=((0, 0), (5, 1)))),
        ("gates.temperature", Ramp(start=5, end=1, to_epoch=350), Ramp(start=5, end=1, to_epoch=10)),
        ("freeze.collapse_epoch", 210, 6),
    ],
)
def test_a_short_version_has_its_events_at_the_same_fractions_of_the_run(field, full_length, expected):
    section, _, name = field.rpartition(".")
    changes = {section: {name: full_length}} if section else {name: full_length}
    full = RunConfig(name="full", data="cifar10", model="resnet110", **changes)
    assert attrgetter(field)(short(full)) == expected


def test_the_dense_baseline_differs_from_the_pruned_run_in_nothing_else():
    dense, half = recipe("cifar10_resnet20_dense"), recipe("cifar10_resnet20_half")
    same = {"name", "method", "target_macs"}
    assert (dense.method, half.method) == ("dense", "consensus")
    assert dense.model_dump(exclude=same) == half.model_dump(exclude=same)


def test_rising_lambda_is_table_5():
    schedule = recipe("cifar10_resnet110_lambda_up").polarization
    assert [schedule.at(epoch) for epoch in (0, 124, 125, 189, 190, 349)] == [0, 0, 2, 2, 3, 3]


def test_tiny_imagenet_is_not_said_to_be_missing_from_the_paper():
    """Its abstract claims it; the version that we have has no figures."""
    docs = [RECIPES[f"tiny_imagenet_resnet110_{what}"].__doc__ for what in ("dense", "layer", "channel")]
    assert all("paper: not in the version we have." in doc for doc in docs)


def test_unknown_recipes_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"'digit'.*did you mean 'digits'"):
        recipe("digit")
