"""``dist-prune benchmark``."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from dist_prune.cli.arguments import positive
from dist_prune.cli.sliced import sliced_parser


def benchmark(arguments: list[str]) -> None:
    """Time a run's sliced network, or a sliced checkpoint, next to the dense one and to a reference of its shape."""
    parser = sliced_parser("benchmark", benchmark.__doc__)
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
    from dist_prune.benchmark.inference import Options
    from dist_prune.benchmark.inference import benchmark as measured
    from dist_prune.benchmark.results import table, write_benchmark

    target = Path(out or os.path.join(folder, "benchmark"))
    if Path(folder).exists():  # else it is the folder that is wrong
        target.mkdir(parents=True, exist_ok=True)  # minutes later is too late to learn that it cannot be
    result = measured(folder, Options(**settings))
    print(f"{table(result)}\n")
    print(*write_benchmark(result, target), sep="\n")


def _numbers(text: str) -> tuple[int, ...]:
    """An argument type: whole numbers above 0, separated by commas."""
    if not re.fullmatch(r"[1-9][0-9]*(,[1-9][0-9]*)*", text):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 1,32,256, not {text}")
    return tuple(int(number) for number in text.split(","))
