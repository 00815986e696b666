"""A million tiny samples in 1,000 shards that somebody else made: prints one JSON object.

    python benchmarks/many_shards.py --work FOLDER [--shards 1000] [--samples 1000]

Measured, in the order in which a user meets it, with nothing kept on the machine before: the seconds that the index
takes (headers only), the memory and seconds of the order of an epoch, the seconds from opening the data to the first
batch of an epoch and of its second half (as a resumed run reads it), and whether that batch holds the samples that an
uninterrupted epoch has there. With --decode also the seconds of decoding all of it, and of an epoch of it. --work takes
2.1 GB; shards that are there are used again.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import platform
import resource
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_tools import ShardIndex
from data_tools.index import INDEX_NAME
from data_tools.open_shards import Labelling, write_index
from data_tools.tar import BLOCK
from dist_prune.config import CacheConfig
from dist_prune.data import ImageData, open_data
from dist_prune.data.plan import Order

CLASSES, BATCH = 10, 256
NOT_DECODED = CacheConfig(decoded_gigabytes=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--decode", action="store_true")
    options = parser.parse_args()
    os.environ["DIST_PRUNE_DATA"] = str(options.work.absolute() / "home")
    shutil.rmtree(options.work / "home", ignore_errors=True)
    torch.set_num_threads(1)
    folder = options.work / "shards"
    if not folder.exists():
        write_shards(folder, options.shards, options.samples)
    (folder / INDEX_NAME).unlink(missing_ok=True)
    measured = measure(folder, options.decode)
    about = {
        "benchmark": "many_shards",
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in ("torch", "pillow", "numpy")},
        "shards": options.shards,
        "samples": options.shards * options.samples,
    }
    print(json.dumps({**about, **measured}, indent=1))


def measure(folder: Path, decode: bool) -> dict[str, Any]:
    """Measure everything."""
    seconds: dict[str, float] = {}
    with timed(seconds, "to index"):
        _, index = write_index(str(folder), Labelling(), workers=len(os.sched_getaffinity(0)))

    lengths = index.split("train").shard_lengths
    tracemalloc.start()
    with timed(seconds, "to compute the order of an epoch"):
        order = Order(lengths, 1, 0, BATCH)
        for step in range(order.steps):
            order.part(step, 0, BATCH)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    half = order.steps // 2
    with timed(seconds, "to the first batch"):
        first_batch(open_data(str(folder), workers=2, cache=NOT_DECODED))
    with timed(seconds, "to the first batch of a resume in mid-epoch"):
        images, _ = first_batch(open_data(str(folder), workers=2, cache=NOT_DECODED), half)
    planned = order.part(half, 0, BATCH)
    expected = (np.cumsum([0, *lengths])[planned.shards] + planned.rows).tolist()

    if decode:
        data = open_data(str(folder), workers=0)
        with timed(seconds, "to the first batch, all decoded"):
            first_batch(data)
        with timed(seconds, "of a later epoch"):
            for _ in epoch(data):
                pass
    kept = Path(os.environ["DIST_PRUNE_DATA"])
    return {
        "megabytes_of_shards": megabytes(folder),
        "megabytes_of_the_index": round((folder / INDEX_NAME).stat().st_size / 1e6, 2),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_megabytes_of_the_order": round(peak / 1e6, 2),
        "steps": order.steps,
        "a_resume_reads_the_planned_samples": numbers(images, index) == expected,
        "megabytes_kept": {path.name: megabytes(path) for path in kept.iterdir() if path.is_dir()},
        "peak_megabytes_of_the_process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def numbers(images: torch.Tensor, index: ShardIndex) -> list[int]:
    """Return the numbers that normalized images spell."""
    digits = ((images[:, 0, 0, :4] * index.std[0] + index.mean[0]) * 255).round().long()
    return (digits * 256 ** torch.arange(4)).sum(dim=1).tolist()


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that a block takes."""
    begin = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begin


def epoch(data: ImageData, skip_steps: int = 0) -> Any:
    """Return the batches of the first epoch."""
    sizes = {"micro_batch": BATCH, "global_batch": BATCH}
    return data.train_batches(0, rank=0, world_size=1, skip_steps=skip_steps, **sizes)


def first_batch(data: ImageData, skip_steps: int = 0) -> Any:
    """Return the first batch after so many steps of the epoch."""
    batches = epoch(data, skip_steps)
    batch = next(batches)
    batches.close()
    return batch


def megabytes(folder: Path) -> float:
    """Return the size of all files in a folder."""
    return round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, 1)


def write_shards(folder: Path, shards: int, samples: int) -> None:
    """Write tars of gray PNGs of 8 x 8 pixels, which spell their number, and labels."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with open(folder / f"many-train-{shard:06d}.tar", "wb") as file:
            for number in range(shard * samples, (shard + 1) * samples):
                pixels = np.zeros((8, 8), np.uint8)
                pixels[0, :4] = number >> np.array([0, 8, 16, 24]) & 255
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
                file.write(member(f"{number:08d}.png", stream.getvalue()))
                file.write(member(f"{number:08d}.cls", b"%d" % (number % CLASSES)))
            file.write(bytes(2 * BLOCK))


def member(name: str, data: bytes) -> bytes:
    """Return header and data of a member; tarfile would take ten times as long."""
    fields = [
        name.encode().ljust(100, b"\0"),
        b"0000644\0",
        b"0000000\0" * 2,
        b"%011o\0" % len(data),
        b"0" * 11 + b"\0",
    ]
    before, after = b"".join(fields), (b"0" + bytes(100) + b"ustar\00000").ljust(BLOCK - 156, b"\0")
    header = before + b"%06o\0 " % (sum(before) + 8 * ord(" ") + sum(after)) + after
    return header + data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


if __name__ == "__main__":
    main()
