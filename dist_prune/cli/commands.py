"""The subcommands of ``dist-prune``; the first line of each docstring is its help."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_prune.cli.arguments import Parser, positive
from dist_prune.errors import RunError, UserError, nearest


def _parser(name: str, function: Callable[..., Any]) -> Parser:
    return Parser(prog=f"dist-prune {name}", description=function.__doc__)


def recipes(arguments: list[str]) -> None:
    """List the recipes that --recipe takes; or show one of them, with all its fields."""
    from dist_prune.recipes import RECIPES, recipe

    parser = _parser("recipes", recipes)
    parser.add_argument("name", metavar="NAME", nargs="?")
    chosen = parser.parse(arguments).name
    if chosen:
        config = recipe(chosen)
        print(f"{inspect.getdoc(RECIPES[chosen])}\n\n{config.model_dump_json(indent=2)}")
        return
    for name, described in RECIPES.items():
        print(f"{name}\n    " + (described.__doc__ or "").strip().splitlines()[0])


def collapse(arguments: list[str]) -> None:
    """Collapse the newest checkpoint of a run, or one checkpoint, into a sliced checkpoint."""
    parser = _parser("collapse", collapse)
    parser.add_argument(
        "run", metavar="RUN|CHECKPOINT", help="a run folder, or one of its checkpoints/step-..."
    )
    parser.add_argument("--out", help="folder for mask.json and sliced/ (default: the run folder)")
    parser.add_argument("--mask", help="a mask.json to use instead of a vote over the training images")
    parser.add_argument("--data", help="where the shards are, if not where the run found them")
    parser.add_argument(
        "--round_to",
        type=positive(int),
        metavar="N",
        help="keep multiples of N channels (default: the recipe's)",
    )
    options = parser.parse(arguments)
    from dist_prune.offline.runs import collapse_run

    _show(collapse_run(options.run, options.out, options.mask, options.data, options.round_to))


def evaluate(arguments: list[str]) -> None:
    """Evaluate a sliced checkpoint, or the one of a run folder."""
    parser = _parser("evaluate", evaluate)
    parser.add_argument("folder", metavar="RUN|FOLDER")
    parser.add_argument("--data", help="data set, folder of shards or pattern (default: the run's)")
    parser.add_argument("--split", default="test")
    options = parser.parse(arguments)
    from dist_prune.offline.runs import evaluate_sliced

    _show(evaluate_sliced(options.folder, options.data, options.split))


def export(arguments: list[str]) -> None:
    """Export the sliced network of a run, or a sliced checkpoint, as ONNX, pt2 or safetensors, and check the file."""
    from dist_prune.export.exporting import export_sliced
    from dist_prune.export.formats import FORMATS

    parser = _parser("export", export)
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a sliced checkpoint")
    parser.add_argument("--format", required=True, help=", ".join(FORMATS))
    parser.add_argument(
        "--fold_bn", action="store_true", help="fold batch norms into the convolutions before them"
    )
    parser.add_argument("--half", action="store_true", help="fp16 weights")
    parser.add_argument(
        "--out", metavar="PATH", help="file, or folder of safetensors (default: FOLDER/export/)"
    )
    _show(export_sliced(**vars(parser.parse(arguments))))


def benchmark(arguments: list[str]) -> None:
    """Time a run's sliced network, or a sliced checkpoint, next to the dense one and to a reference of its shape."""
    parser = _parser("benchmark", benchmark)
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a sliced checkpoint")
    parser.add_argument(
        "--batch",
        type=_numbers,
        dest="batches",
        default=(1, 32, 256),
        metavar="N,N,...",
        help="default: 1,32,256",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--channels_last", action="store_true", help="memory layout of images and weights")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument(
        "--seconds", type=positive(float), default=10.0, help="of measuring at each batch size (default: 10)"
    )
    parser.add_argument(
        "--grid_intensity",
        type=positive(float),
        metavar="G",
        help="grams of CO2 per kWh, for the CO2 of an image",
    )
    parser.add_argument("--out", help="folder for speed.json and speed.png (default: FOLDER/benchmark)")
    settings = vars(parser.parse(arguments))
    folder, out = settings.pop("folder"), settings.pop("out")
    from dist_prune.benchmark.inference import Options
    from dist_prune.benchmark.inference import benchmark as measured
    from dist_prune.benchmark.outcome import table, write_benchmark

    target = Path(out or os.path.join(folder, "benchmark"))
    if Path(folder).exists():  # else it is the folder that is wrong
        target.mkdir(parents=True, exist_ok=True)  # minutes later is too late to learn that it cannot be
    result = measured(folder, Options(**settings))
    print(f"{table(result)}\n")
    print(*write_benchmark(result, target), sep="\n")


def naive(arguments: list[str]) -> None:
    """Evaluate a trained network that loses a random share of its weights or layers (naive baselines)."""
    parser = _parser("naive", naive)
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a sliced checkpoint")
    parser.add_argument("--data", help="data set, folder of shards or pattern (default: the run's)")
    parser.add_argument("--shares", type=float, nargs="+", help="default: 0.2 0.3 0.5 0.6 0.8")
    parser.add_argument("--draws", type=positive(int), default=3, help="random draws of each share")
    parser.add_argument("--split", default="test")
    options = parser.parse(arguments)
    from dist_prune.offline.naive import SHARES, naive_baselines, table

    shares = options.shares or SHARES
    print(table(naive_baselines(options.folder, options.data, shares, options.draws, options.split)))


def report(arguments: list[str]) -> None:
    """Draw the pictures and the page of a run folder; several are compared, in tables and pictures."""
    parser = _parser("report", report)
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--out", help="folder of a comparison (default: report-comparison beside the runs)")
    parser.add_argument(
        "--to_accuracy",
        type=_fraction,
        metavar="A",
        help="say what time and energy it took to reach this test accuracy, for example 0.9",
    )
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


def shards(arguments: list[str]) -> None:
    """Make WebDataset shards of a data set, or verify some: dist-prune shards make | verify."""
    verbs = {"make": _shards_make, "verify": _shards_verify}
    parser = _parser("shards", shards)
    parser.add_argument("verb", metavar="VERB", help="make or verify; each has a --help of its own")
    verb = parser.parse(arguments[:1]).verb
    if verb not in verbs:
        raise UserError(f"unknown command 'shards {verb}'; {nearest(verb, verbs)}")
    verbs[verb](arguments[1:])


def _shards_make(arguments: list[str]) -> None:
    """Make WebDataset shards of a data set; an interrupted command goes on when it is given again."""
    from data_tools import SOURCES, make_shards

    parser = _parser("shards make", _shards_make)
    parser.add_argument("source", metavar="SOURCE", help=", ".join(SOURCES))
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="where the original files are")
    parser.add_argument("--out", required=True, metavar="DIR|URL", help="a folder, or s3://..., gs://...")
    parser.add_argument(
        "--format",
        default="auto",
        help="files: images as they are; raw: arrays of pixels, for tiny images of one size; "
        "auto: raw where the source holds arrays",
    )
    parser.add_argument(
        "--samples_per_shard", type=positive(int), metavar="N", help="default: 1000, raw 5000"
    )
    parser.add_argument("--bytes_per_shard", type=_bytes, metavar="N[k|M|G]", help="instead: so many bytes")
    parser.add_argument(
        "--test_fraction", type=float, help="share of the images to hold out, if there is no test split"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the one shuffle")
    parser.add_argument("--workers", type=positive(int), default=_cores(), help="processes; default: cores")
    options = vars(parser.parse(arguments))
    try:
        index = make_shards(**options, progress=True)
    except KeyboardInterrupt:
        raise RunError("interrupted; the same command goes on from here") from None
    for name, split in index.splits.items():
        print(f"{name}: {split.num_samples:,} images in {len(split.filenames)} shards")


def _shards_verify(arguments: list[str]) -> None:
    """Look at every byte of a data set in shards; name each broken shard and sample, and exit with 1."""
    from data_tools import verify_shards

    parser = _parser("shards verify", _shards_verify)
    parser.add_argument("location", metavar="DIR|URL", help="a folder, its _info.json, tars as X-{0..4}.tar")
    parser.add_argument("--split", help="the only one to look at")
    parser.add_argument("--workers", type=positive(int), default=_cores(), help="processes; default: cores")
    options = vars(parser.parse(arguments))
    problems = verify_shards(**options, progress=True)
    for problem in problems:
        print(problem)
    if problems:
        raise RunError(
            f"{options['location']} is damaged: {len(problems)} problem{'s' * (len(problems) > 1)}"
        )
    print(f"{options['location']} is whole")


def _cores() -> int:
    from joblib import cpu_count  # of the machine, a binding or a container, whichever is the least

    return int(cpu_count())


def _numbers(text: str) -> tuple[int, ...]:
    """An argument type: whole numbers above 0, separated by commas."""
    if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", text):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 1,32,256, not {text}")
    return tuple(int(number) for number in text.split(","))


def _fraction(text: str) -> float:
    """An argument type: a number above 0, up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction such as 0.9, not {text}")
    return value


def _bytes(text: str) -> int:
    """An argument type: a number of bytes, or of thousands, millions, thousand millions of them."""
    parts = re.fullmatch(r"([1-9][0-9]*)([kMG]?)", text)
    if not parts:
        raise argparse.ArgumentTypeError(f"expected bytes, such as 64M, not {text}")
    return int(parts[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[parts[2]]


def _show(values: dict[str, Any]) -> None:
    from tabulate import tabulate

    rows = [(name, "not measured" if value is None else value) for name, value in values.items()]
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "recipes": recipes,
    "collapse": collapse,
    "evaluate": evaluate,
    "export": export,
    "benchmark": benchmark,
    "naive": naive,
    "report": report,
    "shards": shards,
}
