"""``dist-prune recipes``."""

from __future__ import annotations

import inspect
import json

from dist_prune.cli.arguments import command_parser


def recipes(arguments: list[str]) -> None:
    """List the recipes that --recipe takes, or show one with all its fields."""
    parser = command_parser("recipes", recipes.__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?")
    chosen = parser.parse(arguments).name
    from pydantic_core import to_jsonable_python

    from dist_prune.config import fields
    from dist_prune.recipes import RECIPES, recipe

    if not chosen:
        for name, described in RECIPES.items():
            print(f"{name}\n    " + (described.__doc__ or "").strip().splitlines()[0])
        return
    config = recipe(chosen)
    print(f"{inspect.getdoc(RECIPES[chosen])}\n")
    for key, value, about in fields(config):
        # As --set takes it, so that a line can be copied.
        print(f"{key}={json.dumps(to_jsonable_python(value))}\n    {about}")
