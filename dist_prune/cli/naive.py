"""``dist-prune naive``."""

from __future__ import annotations

from dist_prune.cli.arguments import command_parser, positive


def naive(arguments: list[str]) -> None:
    """Evaluate a trained network that loses a random share of its weights or layers (naive baselines)."""
    parser = command_parser("naive", naive.__doc__)
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a sliced checkpoint")
    parser.add_argument("--data", help="data set, folder of shards or pattern (default: the run's)")
    parser.add_argument("--shares", type=float, nargs="+", help="default: 0.2 0.3 0.5 0.6 0.8")
    parser.add_argument("--draws", type=positive(int), default=3, help="random draws of each share")
    parser.add_argument("--split", default="test")
    options = parser.parse(arguments)
    from dist_prune.offline.naive import SHARES, naive_baselines, table

    shares = options.shares or SHARES
    print(table(naive_baselines(options.folder, options.data, shares, options.draws, options.split)))
