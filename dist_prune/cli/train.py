"""``launch/train.py``: train and collapse, on every rank."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from dist_prune.cli.arguments import Parser, positive


def train(arguments: Sequence[str]) -> bool:
    """Train a gated network and collapse it to a small one; False when it stopped on request after saving."""
    options = train_parser().parse(arguments)
    from dist_prune.config import override, settings_keys
    from dist_prune.recipes import recipe

    settings = [f"data={json.dumps(options.data)}"] if options.data else []
    config = override(recipe(options.recipe), settings + options.set)
    # Only now torch: a mistake above is reported within a second.
    from dist_prune.training.run import Options, run

    return run(
        config,
        Options(
            ds_config=options.ds_config,
            out=options.out,
            resume=options.resume,
            max_steps=options.max_steps,
            max_hours=options.max_hours,
            keys_set=settings_keys(options.set),
        ),
    )


def train_parser() -> Parser:
    """Return the parser of the training program."""
    parser = Parser(prog="launch/train.py", description="Train a gated network and collapse it to a small one.")
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
