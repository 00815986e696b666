"""``dist-prune collapse``."""

from __future__ import annotations

from dist_prune.cli.arguments import command_parser, positive, show


def collapse(arguments: list[str]) -> None:
    """Collapse the newest checkpoint of a run, or one checkpoint, into a sliced checkpoint."""
    parser = command_parser("collapse", collapse.__doc__)
    parser.add_argument("run", metavar="RUN|CHECKPOINT", help="a run folder, or one of its checkpoints/step-...")
    parser.add_argument("--out", help="folder for mask.json and sliced/ (default: the run folder)")
    parser.add_argument("--mask", help="a mask.json to use instead of a vote over the training images")
    parser.add_argument("--data", help="where the shards are, if not where the run found them")
    parser.add_argument(
        "--round_to", type=positive(int), metavar="N", help="keep multiples of N channels (default: the recipe's)"
    )
    options = parser.parse(arguments)
    from dist_prune.offline.runs import collapse_run

    show(collapse_run(options.run, options.out, options.mask, options.data, options.round_to))
