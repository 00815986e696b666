"""``dist-prune evaluate``."""

from __future__ import annotations

from dist_prune.cli.arguments import command_parser, show


def evaluate(arguments: list[str]) -> None:
    """Evaluate a sliced checkpoint, or the one of a run folder."""
    parser = command_parser("evaluate", evaluate.__doc__)
    parser.add_argument("folder", metavar="RUN|FOLDER")
    parser.add_argument("--data", help="data set, folder of shards or pattern (default: the run's)")
    parser.add_argument("--split", default="test")
    options = parser.parse(arguments)
    from dist_prune.offline.runs import evaluate_sliced

    show(evaluate_sliced(options.folder, options.data, options.split))
