"""Recipes: every one is valid, named after its function, and buildable."""

import pytest
import torch

from dist_prune import UserError, build_model
from dist_prune.config import RunConfig
from dist_prune.methods import METHODS
from dist_prune.recipes import RECIPES, recipe
from dist_prune.training.optimizer import LearningRate, build_optimizer


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_and_explained(name):
    config = recipe(name)
    assert config.name == name
    assert RECIPES[name].__doc__
    assert config.method in METHODS


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_its_json_says(name):
    config = recipe(name)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_built(name):
    config = recipe(name)
    with torch.device("meta"):
        model = build_model(config.model, num_classes=10, in_channels=3, **config.model_args)
    build_optimizer(model, config)
    assert LearningRate(config, config.epochs, 10).at(0) > 0


def test_the_dense_baseline_differs_from_the_pruned_run_in_nothing_else():
    dense, half = recipe("cifar10_resnet20_dense"), recipe("cifar10_resnet20_half")
    same = {"name", "method", "target_macs"}
    assert (dense.method, half.method) == ("dense", "consensus")
    assert dense.model_dump(exclude=same) == half.model_dump(exclude=same)


def test_rising_lambda_is_table_5():
    schedule = recipe("cifar10_resnet110_lambda_up").polarization
    assert [schedule.at(epoch) for epoch in (0, 124, 125, 189, 190, 349)] == [0, 0, 2, 2, 3, 3]


def test_unknown_recipes_are_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"'digit'.*did you mean 'digits'"):
        recipe("digit")
