"""Commands on runs and sliced networks: ``dist-prune collapse | evaluate | naive | export | benchmark | report``."""

import argparse
import contextlib
import os
import re
from pathlib import Path

from dist_prune.cli.arguments import Parser, positive, show
from dist_prune.errors import UserError


def collapse(arguments: list[str]) -> None:
    """Collapse the newest checkpoint of a run, or one checkpoint, into a sliced checkpoint."""
    parser = Parser("dist-prune collapse", collapse.__doc__)
    parser.add_argument("source", metavar="RUN|CHECKPOINT", help="a run folder, or one of its checkpoints/step-...")
    parser.add_argument("--out", help="folder for mask.json and sliced/ (default: the run folder)")
    parser.add_argument("--mask", help="a mask.json to use instead of a vote over the training images")
    parser.add_argument("--data", help="where the shards are, if not where the run found them")
    parser.add_argument("--eval_data", help="likewise those to evaluate on, if the run had some of their own")
    parser.add_argument(
        "--round_to", type=positive(int), metavar="N", help="keep multiples of N channels (default: the recipe's)"
    )
    options = parser.parse(arguments)
    from dist_prune.offline import collapse_run

    show(collapse_run(**vars(options)))


def evaluate(arguments: list[str]) -> None:
    """Evaluate a sliced checkpoint, or the one of a run folder."""
    options = _evaluation_parser("evaluate", evaluate.__doc__).parse(arguments)
    from dist_prune.offline import evaluate_sliced

    show(evaluate_sliced(options.folder, options.data, options.split))


def naive(arguments: list[str]) -> None:
    """Evaluate a trained network that loses a random share of its weights or layers (naive baselines)."""
    parser = _evaluation_parser("naive", naive.__doc__)
    parser.add_argument("--shares", type=float, nargs="+", help="default: 0.2 0.3 0.5 0.6 0.8")
    parser.add_argument("--draws", type=positive(int), default=3, help="random draws of each share")
    options = parser.parse(arguments)
    from dist_prune.offline import SHARES, naive_baselines, naive_table

    shares = options.shares or SHARES
    print(naive_table(naive_baselines(options.folder, options.data, shares, options.draws, options.split)))


def export(arguments: list[str]) -> None:
    """Export the sliced network of a run, or a sliced checkpoint, as ONNX, pt2 or safetensors, and check the file."""
    parser = _sliced_parser("export", export.__doc__)
    parser.add_argument("--format", required=True, help="onnx, pt2 or safetensors")
    parser.add_argument("--fold_bn", action="store_true", help="fold batch norms into the convolutions before them")
    parser.add_argument("--half", action="store_true", help="fp16 weights")
    parser.add_argument("--out", metavar="PATH", help="file, or folder of safetensors (default: FOLDER/export/)")
    options = vars(parser.parse(arguments))
    from dist_prune.export import export_sliced

    show(export_sliced(**options))


def benchmark(arguments: list[str]) -> None:
    """Time a run's sliced network, or a sliced checkpoint, next to the dense one and to a reference of its shape."""
    parser = _sliced_parser("benchmark", benchmark.__doc__)
    parser.add_argument(
        "--batch", type=_numbers, dest="batches", default=(1, 32, 256), metavar="N,N,...", help="default: 1,32,256"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--channels_last", action="store_true", help="memory layout of images and weights")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--seconds", type=positive(float), default=10.0, help="of measuring at each batch size (default: 10)"
    )
    parser.add_argument(
        "--grid_intensity", type=positive(float), metavar="G", help="grams of CO2 per kWh, for the CO2 of an image"
    )
    parser.add_argument("--out", help="folder for speed.json and speed.png (default: FOLDER/benchmark)")
    settings = vars(parser.parse(arguments))
    folder, out = settings.pop("folder"), settings.pop("out")
    from dist_prune.benchmark import inference

    target = Path(out or os.path.join(folder, "benchmark"))
    if Path(folder).exists():  # else it is the folder that is wrong
        target.mkdir(parents=True, exist_ok=True)  # minutes later is too late to learn that it cannot be
    result = inference.benchmark(folder, inference.Options(**settings))
    print(f"{inference.table(result)}\n")
    print(*inference.write_benchmark(result, target), sep="\n")


def report(arguments: list[str]) -> None:
    """Draw the pictures and the page of a run folder; several are compared, in tables and pictures."""
    parser = Parser("dist-prune report", report.__doc__)
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
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"expected a fraction such as 0.9, not {text}")


def _numbers(text: str) -> tuple[int, ...]:
    """An argument type: whole numbers above 0, separated by commas."""
    if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", text):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 1,32,256, not {text}")
    return tuple(int(number) for number in text.split(","))


def _sliced_parser(name: str, description: str | None) -> Parser:
    """Return the parser of a command on a sliced network."""
    parser = Parser(f"dist-prune {name}", description)
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a sliced checkpoint")
    return parser


def _evaluation_parser(name: str, description: str | None) -> Parser:
    parser = _sliced_parser(name, description)
    parser.add_argument("--data", help="data set, folder of shards or pattern (default: the run's)")
    parser.add_argument("--split", default="test")
    return parser
