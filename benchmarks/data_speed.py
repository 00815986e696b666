"""Speed of reading training batches, compared with other readers: prints one JSON object.

    python benchmarks/data_speed.py NAME --images FOLDER --work FOLDER [--rounds 9]

NAME  tiny         CIFAR-10: crop, flip, normalize; raw shards against ImageFolder and plain WebDataset
      photographs  RandomResizedCrop to 224, flip, normalize; against ImageFolder and a bare loop over bytes in memory
      workers      images/s of both against the number of workers
      memory       memory of each worker over 20 epochs of CIFAR-10
      mixing       how well the order mixes classes, against a permutation of all samples (needs no images)

--images holds train/CLASS/*.jpg (and test, for tiny) of the kind in question, for workers both as tiny/ and
photographs/. Shards are made in --work and used again. All readers run in one process, one after another in
every round, so that a machine whose speed drifts slows all of them; ratios are medians of the rounds' ratios.
Times are of the processor (what a process computes) and of the clock (which others on the machine disturb).
"""

from __future__ import annotations

import argparse
import datetime
import io
import itertools
import json
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from data_tools import make_shards
from dist_prune.config import AugmentConfig
from dist_prune.data import ImageData, open_data
from dist_prune.data.plan import Order
from dist_prune.runtime.environment import tune_cpu

BATCH = {"tiny": 128, "photographs": 50}
AUGMENT = {
    "tiny": AugmentConfig(crop_padding=4, flip=True),
    "photographs": AugmentConfig(random_resized_crop=True, flip=True),
}
SIZE = {"tiny": None, "photographs": 224}
FORMAT = {"tiny": "raw", "photographs": "files"}
Batches = Iterator[Any]


def ours(kind: str, images: Path, work: Path, format: str, workers: int = 0) -> ImageData:
    """Our reader, of shards that are made if they are not there yet."""
    shards = work / f"{kind}-{format}"
    make_shards("imagefolder", images, shards, format=format, test_fraction=_test_fraction(images))
    return open_data(str(shards), workers=workers, image_size=SIZE[kind], augment=AUGMENT[kind], channels_last=True)


def _test_fraction(images: Path) -> float | None:
    return None if (images / "test").is_dir() or (images / "val").is_dir() else 0.01


def train_batches(data: ImageData, batch: int) -> Batches:
    """Batches of epoch after epoch."""
    for epoch in itertools.count():
        yield from data.train_batches(epoch, micro_batch=batch, global_batch=batch, rank=0, world_size=1)


def transform(kind: str, data: ImageData) -> Compose:
    """The same as ours, by torchvision, image by image."""
    crop = RandomCrop(32, padding=4) if kind == "tiny" else RandomResizedCrop(224)
    return Compose([crop, RandomHorizontalFlip(), ToTensor(), Normalize(**data.normalization)])


def forever(loader: Any) -> Batches:
    """The batches of a loader, again and again."""
    while True:
        yield from loader


def image_folder(kind: str, images: Path, data: ImageData) -> Batches:
    """Torchvision's ImageFolder (Pillow) in torch's DataLoader."""
    dataset = ImageFolder(str(images / "train"), transform(kind, data))
    return forever(DataLoader(dataset, batch_size=BATCH[kind], shuffle=True))


def plain_webdataset(data: ImageData, encoded: ImageData) -> Batches:
    """WebDataset as its documentation uses it, on encoded shards of the same images."""
    urls = [f"{encoded.index.root}/{name}" for name in encoded.index.split("train").filenames]
    stream = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000)
    stream = stream.decode("pil").to_tuple("jpg", "cls").map_tuple(transform("tiny", data), int)
    return forever(DataLoader(stream.batched(BATCH["tiny"], partial=False), batch_size=None))


def bare_loop(images: Path, crop: bool) -> Iterator[np.ndarray]:
    """Decode from memory, and with ``crop`` cut and flip as well: one image after another, nothing else."""
    encoded = [path.read_bytes() for path in sorted((images / "train").glob("*/*"))]
    chosen = RandomResizedCrop(224)
    for data in itertools.chain.from_iterable(itertools.repeat(encoded)):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if crop:
            top, left, height, width = chosen.get_params(image, chosen.scale, chosen.ratio)
            image = image.crop((left, top, left + width, top + height)).resize((224, 224), Image.BILINEAR)
            if random.random() < 0.5:
                image = image.transpose(Image.FLIP_LEFT_RIGHT)
        yield np.asarray(image)


def compare(readers: dict[str, tuple[Batches, int, int]], rounds: int) -> dict[str, Any]:
    """Measure readers interleaved; each is (batches, images in one, batches in a round). The first one is ours."""
    for batches, _, _ in readers.values():
        next(batches)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for number in range(rounds):
        for name in sorted(readers, reverse=number % 2 == 1):
            batches, size, count = readers[name]
            clock, processor = time.perf_counter(), time.process_time()
            for _ in itertools.islice(batches, count):
                pass
            images = size * count
            speeds[name].append((images / (time.process_time() - processor), images / (time.perf_counter() - clock)))
    first, *others = readers
    result: dict[str, Any] = {"rounds": rounds}
    for column, kind in enumerate(("processor", "clock")):
        of = {name: [speed[column] for speed in measured] for name, measured in speeds.items()}
        result[f"images_per_second_by_{kind}"] = {name: round(statistics.median(of[name])) for name in of}
        result[f"{first} / others by {kind}"] = {
            name: round(statistics.median(a / b for a, b in zip(of[first], of[name], strict=True)), 3)
            for name in others
        }
    return result


def tiny(images: Path, work: Path, rounds: int) -> dict[str, Any]:
    """CIFAR-10, batch 128."""
    data, encoded = (ours("tiny", images, work, format) for format in ("raw", "files"))
    size = BATCH["tiny"]
    readers = {
        "dist_prune": (train_batches(data, size), size, 200),
        "ImageFolder + DataLoader": (image_folder("tiny", images, data), size, 10),
        "WebDataset": (plain_webdataset(data, encoded), size, 10),
        "dist_prune, encoded shards": (train_batches(encoded, size), size, 20),
    }
    return {"batch": size, **compare(readers, rounds)}


def photographs(images: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Photographs, batch 50."""
    data = ours("photographs", images, work, "files")
    size = BATCH["photographs"]
    readers = {
        "dist_prune": (train_batches(data, size), size, 4),
        "ImageFolder + DataLoader": (image_folder("photographs", images, data), size, 4),
        "bare loop, decode and crop": (bare_loop(images, crop=True), 1, 200),
        "bare loop, decode": (bare_loop(images, crop=False), 1, 200),
    }
    return {"batch": size, "images": data.num_samples("train"), **compare(readers, rounds)}


def workers(images: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Batches that arrive in the training process, while it does nothing else."""
    result: dict[str, Any] = {"rounds": rounds}
    for kind, count in (("tiny", 300), ("photographs", 8)):
        numbers = (0, 1, 2, 4)
        data = {n: ours(kind, images / kind, work, FORMAT[kind], workers=n) for n in numbers}
        speeds: dict[int, list[float]] = {n: [] for n in numbers}
        for _ in range(rounds):
            for n in numbers:
                batches = train_batches(data[n], BATCH[kind])
                next(batches)  # the workers have begun
                clock = time.perf_counter()
                for _ in itertools.islice(batches, count):
                    pass
                speeds[n].append(count * BATCH[kind] / (time.perf_counter() - clock))
                batches.close()
        result[kind] = {str(n): round(statistics.median(speeds[n])) for n in numbers}
    return result


def writers(images: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Seconds that the shards of an image folder take to make, on all cores that this process may use."""
    seconds: dict[str, list[float]] = defaultdict(list)
    cores = len(os.sched_getaffinity(0))
    for _ in range(rounds):
        for format in ("raw", "files"):
            shutil.rmtree(work / "writers", ignore_errors=True)
            clock = time.perf_counter()
            make_shards("imagefolder", images, work / "writers", format=format, workers=cores)
            seconds[format].append(round(time.perf_counter() - clock, 1))
    return {"images": sum(1 for path in images.rglob("*") if path.is_file()), "seconds": seconds}


def memory(images: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Anonymous memory (MB) near the end of each of 20 epochs: of the process that trains, the most of 2 workers."""
    data, epochs = ours("tiny", images, work, "raw", workers=2), []
    last = data.steps_per_epoch(BATCH["tiny"]) - 20
    for epoch in range(20):
        batches = data.train_batches(epoch, micro_batch=128, global_batch=128, rank=0, world_size=1)
        for step, _ in enumerate(batches):
            if step == last:  # the workers are still there
                found = [_anonymous_megabytes(process.pid) for process in multiprocessing.active_children()]
                epochs.append({"process": _anonymous_megabytes(os.getpid()), "worker": max(found)})
    return {"epochs": epochs}


def _anonymous_megabytes(pid: int | None) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("Anonymous:"))
    return round(int(kilobytes) / 1024, 1)


def mixing(images: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Run length of classes and imbalance of batches: by a permutation of all, and by our order of shards of 1,000.

    run_length: neighbors of one class in a row, mean; imbalance: the share of a batch that would have to change
    its class for all classes to be equally frequent, mean.
    """
    result = {}
    for name, samples, classes, batch in (("10 classes", 50_000, 10, 256), ("1000 classes", 1_281_000, 1000, 1024)):
        in_order = np.arange(samples) * classes // samples
        shuffled = np.random.RandomState(0).permutation(in_order)
        order = Order((1000,) * (samples // 1000), seed=1, epoch=0, global_batch=batch)
        parts = [order.part(step, 0, batch) for step in range(order.steps)]
        read = np.stack([part.shards * 1000 + part.rows for part in parts])
        permuted = np.random.RandomState(1).permutation(samples)[: read.size].reshape(read.shape)
        result[name] = {
            "permutation of all": _mixed(in_order[permuted], classes),
            "shards shuffled when made": _mixed(shuffled[read], classes),
            "shards made class by class": _mixed(in_order[read], classes),
        }
    return result


def _mixed(labels: np.ndarray, classes: int) -> dict[str, float]:
    flat = labels.ravel()
    shares = np.stack([np.bincount(batch, minlength=classes) / len(batch) for batch in labels])
    return {
        "run_length": round(len(flat) / (1 + int((flat[1:] != flat[:-1]).sum())), 4),
        "imbalance": round(float(np.abs(shares - 1 / classes).sum(axis=1).mean() / 2), 4),
        "classes_in_a_batch": round(float((shares > 0).sum(axis=1).mean()), 1),
    }


BENCHMARKS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    function.__name__: function for function in (tiny, photographs, workers, writers, memory, mixing)
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--images", type=Path, default=Path())
    parser.add_argument("--work", type=Path, default=Path("runs/data_speed"))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    tune_cpu()  # as every run does; it serves all readers
    torch.set_num_threads(1)  # the process that takes the batches must not take the workers' cores
    measured = BENCHMARKS[options.name](options.images, options.work, options.rounds)
    packages = ("torch", "torchvision", "webdataset", "pillow", "numpy")
    about = {
        "benchmark": f"data_speed {options.name}",
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in packages},
    }
    print(json.dumps({**about, **measured}))


if __name__ == "__main__":
    main()
