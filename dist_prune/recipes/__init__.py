"""Recipes: named runs as functions that return a RunConfig; the docstring gives command, time and expected result."""

from dist_prune.recipes import ours, paper  # each registers its own
from dist_prune.recipes.catalog import RECIPES, recipe
