"""``dist-prune report``."""

from __future__ import annotations

import argparse

from dist_prune.cli.arguments import command_parser
from dist_prune.errors import UserError


def report(arguments: list[str]) -> None:
    """Draw the pictures and the page of a run folder; several are compared, in tables and pictures."""
    parser = command_parser("report", report.__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--out", help="folder of a comparison (default: report-comparison beside the runs)")
    help = "show the time and energy to reach this test accuracy, for example 0.9"
    parser.add_argument("--to_accuracy", type=_fraction, metavar="A", help=help)
    options = parser.parse(arguments)
    try:
        if len(options.runs) > 1 or options.out:
            from dist_prune.study.comparison import write_comparison

            print(write_comparison(options.runs, options.out, options.to_accuracy))
        else:
            from dist_prune.monitor.records import RunFolder
            from dist_prune.monitor.report import write_report

            print(write_report(RunFolder(options.runs[0]), options.to_accuracy))
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error


def _fraction(text: str) -> float:
    """An argument type: a number above 0, up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction such as 0.9, not {text}")
    return value
