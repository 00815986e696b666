"""Speed of reading training batches, compared with other readers: prints one JSON object.

    python benchmarks/data_speed.py NAME --images FOLDER --work FOLDER [--rounds 9] [--old CHECKOUT]

NAME  tiny         CIFAR-10: crop, flip, normalize; against ImageFolder, plain WebDataset and raw shards of old versions
      photographs  RandomResizedCrop to 224, flip, normalize; against ImageFolder, WebDataset and bare loops over bytes
      first_epoch  seconds of three epochs of both kinds of tiny images, the first of which decodes them all
      workers      images/s of both against the number of workers
      scans        how often the headers of a shard are read
      writers      seconds that shards take to make
      memory       memory of each worker over 20 epochs of CIFAR-10
      mixing       how well the order mixes classes, against a permutation of all samples (needs no images)

--images holds tiny/ and photographs/ (with train/CLASS/*.jpg) and cifar-10-batches-py (the original files); shards are
made in --work and used again. --old is a checkout of the last version that wrote raw shards (1e0b06c): its own code
makes and reads them, in a process beside this one. Readers take turns in every round, so that a machine whose speed
drifts slows all of them; ratios are medians of the rounds' ratios. Times are of the processor (what a process
computes) and of the clock (which others on the machine disturb).
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
import subprocess
import sys
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
from dist_prune.config import AugmentConfig, CacheConfig
from dist_prune.data import ImageData, offsets, open_data
from dist_prune.data.plan import Order
from dist_prune.runtime.environment import tune_cpu

BATCH = {"tiny": 128, "photographs": 50}
AUGMENT = {
    "tiny": AugmentConfig(crop_padding=4, flip=True),
    "tiny-imagenet": AugmentConfig(crop_padding=8, flip=True),
    "photographs": AugmentConfig(random_resized_crop=True, flip=True),
}
SIZE = {"tiny": None, "tiny-imagenet": None, "photographs": 224}
Batches = Iterator[Any]
Measure = Callable[[], tuple[float, float]]  # images/s by processor and by clock, of one round


class Options(argparse.Namespace):
    """What was asked for on the command line."""

    images: Path
    work: Path
    rounds: int
    old: Path | None


OLD = """
import itertools, sys, time, torch
from dist_prune.config import AugmentConfig
from dist_prune.data import open_data
from dist_prune.runtime.environment import tune_cpu
tune_cpu(); torch.set_num_threads(1)
augment = AugmentConfig(crop_padding=4, flip=True)
data = open_data(sys.argv[1], workers=0, augment=augment, channels_last=True)
sizes = dict(micro_batch=128, global_batch=128, rank=0, world_size=1)
batches = (batch for epoch in itertools.count() for batch in data.train_batches(epoch, **sizes))
next(batches)
for line in sys.stdin:
    clock, processor = time.perf_counter(), time.process_time()
    for _ in itertools.islice(batches, int(line)):
        pass
    print(time.process_time() - processor, time.perf_counter() - clock, flush=True)
"""


def ours(kind: str, images: Path, work: Path, workers: int = 0, decoded: bool = True) -> ImageData:
    """Our reader, of shards that are made if they are not there yet."""
    shards = work / kind
    if kind == "tiny":
        make_shards("cifar10", images / "cifar-10-batches-py", shards, workers=os.cpu_count() or 1)
    else:
        make_shards("imagefolder", images / kind, shards, test_fraction=_test_fraction(images / kind))
    cache = CacheConfig(decoded_gigabytes=2.0 if decoded else 0.0)
    size, augment = SIZE[kind], AUGMENT[kind]
    return open_data(str(shards), cache=cache, workers=workers, image_size=size, augment=augment, channels_last=True)


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


def plain_webdataset(kind: str, data: ImageData) -> Batches:
    """WebDataset as its documentation uses it, on the same shards."""
    urls = [f"{data.index.root}/{name}" for name in data.index.split("train").filenames]
    stream = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000)
    stream = stream.decode("pil").to_tuple("jpg;png", "cls").map_tuple(transform(kind, data), int)
    return forever(DataLoader(stream.batched(BATCH[kind], partial=False), batch_size=None))


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


def timed(batches: Batches, size: int, count: int) -> Measure:
    """Measure any iterator: ``count`` batches of ``size`` images in a round."""
    next(batches)

    def measure() -> tuple[float, float]:
        clock, processor = time.perf_counter(), time.process_time()
        for _ in itertools.islice(batches, count):
            pass
        return size * count / (time.process_time() - processor), size * count / (time.perf_counter() - clock)

    return measure


def old_raw(checkout: Path, images: Path, work: Path, count: int) -> Measure:
    """Raw shards of CIFAR-10, made and read by an earlier version in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    make = "import sys; from data_tools import make_shards; make_shards('cifar10', sys.argv[1], sys.argv[2])"
    shards = work / "tiny-raw"
    words = [sys.executable, "-c", make, str(images / "cifar-10-batches-py"), str(shards)]
    subprocess.run(words, cwd=checkout, env=environment, check=True)
    reader = subprocess.Popen(
        [sys.executable, "-c", OLD, str(shards)],
        cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert reader.stdin
    assert reader.stdout
    send, receive = reader.stdin, reader.stdout

    def measure() -> tuple[float, float]:
        print(count, file=send, flush=True)
        processor, clock = map(float, receive.readline().split())
        return BATCH["tiny"] * count / processor, BATCH["tiny"] * count / clock

    return measure


def compare(readers: dict[str, Measure], rounds: int) -> dict[str, Any]:
    """Measure readers in turns; the first one is ours."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for number in range(rounds):
        for name in sorted(readers, reverse=number % 2 == 1):
            speeds[name].append(readers[name]())
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


def tiny(options: Options) -> dict[str, Any]:
    """CIFAR-10, batch 128."""
    images, work, size = options.images, options.work, BATCH["tiny"]
    data, encoded = (ours("tiny", images, work, decoded=decoded) for decoded in (True, False))
    readers = {
        "dist_prune, later epochs": timed(train_batches(data, size), size, 200),
        "ImageFolder + DataLoader": timed(image_folder("tiny", images / "tiny", data), size, 10),
        "WebDataset": timed(plain_webdataset("tiny", data), size, 10),
        "dist_prune, decoding each time": timed(train_batches(encoded, size), size, 20),
    }
    if options.old:
        readers["raw shards of 1e0b06c"] = old_raw(options.old, images, work, 200)
    return {"batch": size, **compare(readers, options.rounds)}


def photographs(options: Options) -> dict[str, Any]:
    """Photographs, batch 50."""
    images, size = options.images / "photographs", BATCH["photographs"]
    data = ours("photographs", options.images, options.work)
    readers = {
        "dist_prune": timed(train_batches(data, size), size, 4),
        "ImageFolder + DataLoader": timed(image_folder("photographs", images, data), size, 4),
        "WebDataset": timed(plain_webdataset("photographs", data), size, 4),
        "bare loop, decode and crop": timed(bare_loop(images, crop=True), 1, 200),
        "bare loop, decode": timed(bare_loop(images, crop=False), 1, 200),
    }
    return {"batch": size, "images": data.num_samples("train"), **compare(readers, options.rounds)}


def first_epoch(options: Options) -> dict[str, Any]:
    """Seconds of each of three epochs, the first with nothing kept on the machine, and of one without a cache."""
    result: dict[str, Any] = {}
    for kind in ("tiny", "tiny-imagenet"):
        shutil.rmtree(options.work / "home" / "decoded", ignore_errors=True)
        shutil.rmtree(options.work / "home" / "offsets", ignore_errors=True)
        data, encoded = (ours(kind, options.images, options.work, decoded=decoded) for decoded in (True, False))
        seconds, first_batch = [], 0.0
        for epoch in range(3):
            clock = time.perf_counter()
            for _ in _epoch(data, epoch, BATCH["tiny"]):
                first_batch = first_batch or time.perf_counter() - clock
            seconds.append(round(time.perf_counter() - clock, 2))
        clock = time.perf_counter()
        for _ in _epoch(encoded, 0, BATCH["tiny"]):
            pass
        result[kind] = {
            "images": data.num_samples("train"),
            "decoded_megabytes": round(max(path.stat().st_size for path in _decoded(options)) / 1e6),
            "seconds_to_first_batch": round(first_batch, 2),
            "seconds_of_epochs": seconds,
            "seconds_without_cache": round(time.perf_counter() - clock, 2),
        }
    return result


def _decoded(options: Options) -> Iterator[Path]:
    return (options.work / "home" / "decoded").glob("*.pixels")


def _epoch(data: ImageData, epoch: int, batch: int) -> Batches:
    return data.train_batches(epoch, micro_batch=batch, global_batch=batch, rank=0, world_size=1)


def workers(options: Options) -> dict[str, Any]:
    """Batches that arrive in the training process, while it does nothing else."""
    result: dict[str, Any] = {"rounds": options.rounds}
    for kind, count in (("tiny", 300), ("photographs", 8)):
        numbers = (0, 1, 2, 3, 4)
        data = {n: ours(kind, options.images, options.work, workers=n) for n in numbers}
        speeds: dict[int, list[float]] = {n: [] for n in numbers}
        for _ in range(options.rounds):
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


def scans(options: Options) -> dict[str, Any]:
    """Times that the headers of a shard are read in two epochs, by 4 workers."""
    counted, plain = multiprocessing.get_context("fork").Value("i", 0), offsets._read

    def counting(*arguments: Any) -> Any:
        with counted.get_lock():
            counted.value += 1
        return plain(*arguments)

    shutil.rmtree(options.work / "home" / "offsets", ignore_errors=True)
    data = ours("tiny", options.images, options.work, workers=4, decoded=False)
    offsets._read = counting
    for epoch in range(2):
        for _ in _epoch(data, epoch, BATCH["tiny"]):
            pass
    offsets._read = plain
    return {"shards": len(data.index.split("train").filenames), "workers": 4, "epochs": 2, "scans": counted.value}


def writers(options: Options) -> dict[str, Any]:
    """Seconds that shards take to make, on all cores that this process may use."""
    seconds: dict[str, list[float]] = defaultdict(list)
    cores = len(os.sched_getaffinity(0))
    sources = {"imagefolder, JPEG": ("imagefolder", "tiny"), "cifar10, PNG": ("cifar10", "cifar-10-batches-py")}
    for _ in range(options.rounds):
        for name, (source, folder) in sources.items():
            shutil.rmtree(options.work / "writers", ignore_errors=True)
            clock = time.perf_counter()
            make_shards(source, options.images / folder, options.work / "writers", workers=cores)
            seconds[name].append(round(time.perf_counter() - clock, 1))
    return {"images": 60_000, "seconds": seconds}


def memory(options: Options) -> dict[str, Any]:
    """Anonymous memory (MB) near the end of each of 20 epochs: of the process that trains, the most of 2 workers."""
    data, epochs = ours("tiny", options.images, options.work, workers=2), []
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


def mixing(options: Options) -> dict[str, Any]:
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


BENCHMARKS: dict[str, Callable[[Options], dict[str, Any]]] = {
    function.__name__: function
    for function in (tiny, photographs, first_epoch, workers, scans, writers, memory, mixing)
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--images", type=Path, default=Path())
    parser.add_argument("--work", type=Path, default=Path("runs/data_speed"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--old", type=Path)
    options = parser.parse_args(namespace=Options())
    # What is kept on the machine is the benchmark's own.
    os.environ["DIST_PRUNE_DATA"] = str(options.work.absolute() / "home")
    tune_cpu()  # as every run does; it serves all readers
    torch.set_num_threads(1)  # the process that takes the batches must not take the workers' cores
    measured = BENCHMARKS[options.name](options)
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
