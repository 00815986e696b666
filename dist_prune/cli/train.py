"""``launch/train.py``: train and collapse, on every rank; ``dist-prune recipes``: what it can train."""

import argparse
import inspect
import json
from collections.abc import Sequence

from dist_prune.cli.arguments import Parser, positive


def train(arguments: Sequence[str]) -> bool:
    """Train a gated network and collapse it to a small one; False when it stopped on request after saving."""
    given = vars(train_parser().parse(arguments))
    chosen, data, settings, _ = (given.pop(name) for name in ("recipe", "data", "set", "local_rank"))
    from dist_prune.config import override, settings_keys
    from dist_prune.recipes import recipe

    config = override(recipe(chosen), ([f"data={json.dumps(data)}"] if data else []) + settings)
    # Only now torch: a mistake above is reported within a second.
    from dist_prune.training.run import Options, run

    return run(config, Options(**given, keys_set=settings_keys(settings)))


def train_parser() -> Parser:
    """Return the parser of the training program."""
    parser = Parser("launch/train.py", "Train a gated network and collapse it to a small one.")
    parser.add_argument("--ds_config", "--deepspeed_config", required=True, help="DeepSpeed JSON, see ds_configs/")
    parser.add_argument("--recipe", default="digits", help="a name that 'dist-prune recipes' lists")
    parser.add_argument("--data", help="a data set's name, a folder of shards, or a pattern of shard names")
    parser.add_argument("--out", help="run folder (default: runs/RECIPE-TIMESTAMP)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --out")
    parser.add_argument("--max_steps", type=positive(int), help="save and stop after this many more steps")
    parser.add_argument("--max_hours", type=positive(float), help="save and stop after this many hours")
    parser.add_argument(
        "--set", action="extend", default=[], nargs="+", metavar="KEY=VALUE", help="override recipe fields"
    )
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # launchers pass it
    return parser


def recipes(arguments: list[str]) -> None:
    """List the recipes that --recipe takes, or show one with all its fields."""
    parser = Parser("dist-prune recipes", recipes.__doc__)
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
