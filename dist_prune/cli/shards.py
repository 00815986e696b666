"""``dist-prune shards make``, ``dist-prune shards index`` and ``dist-prune shards verify``."""

import argparse
import re
from typing import Any

from dist_prune.cli.arguments import Parser, positive
from dist_prune.errors import RunError, UserError, nearest

# Written out, because importing the sources takes longer than a second; a test compares them.
SOURCE_NAMES = ("digits", "cifar10", "cifar100", "svhn", "tiny-imagenet", "imagenet", "imagefolder", "raw")


def shards(arguments: list[str]) -> None:
    """Make WebDataset shards, index those of others, or verify some: dist-prune shards make | index | verify."""
    verbs = {"make": _shards_make, "index": _shards_index, "verify": _shards_verify}
    parser = Parser("dist-prune shards", shards.__doc__)
    parser.add_argument("verb", metavar="VERB", help="make, index or verify; each has a --help of its own")
    verb = parser.parse(arguments[:1]).verb
    if verb not in verbs:
        raise UserError(f"unknown command 'shards {verb}'; {nearest(verb, verbs)}")
    verbs[verb](arguments[1:])


def _shards_make(arguments: list[str]) -> None:
    """Make WebDataset shards of a data set; an interrupted command continues when it is given again."""
    parser = Parser("dist-prune shards make", _shards_make.__doc__)
    parser.add_argument("source", metavar="SOURCE", help=", ".join(SOURCE_NAMES))
    parser.add_argument("folder", metavar="FOLDER", nargs="?", help="where the original files are")
    parser.add_argument("--out", required=True, metavar="DIR|URL", help="a folder, or s3://..., gs://...")
    parser.add_argument("--samples_per_shard", type=positive(int), metavar="N", help="default: 1000")
    parser.add_argument("--bytes_per_shard", type=_bytes, metavar="N[k|M|G]", help="instead: a size in bytes")
    parser.add_argument(
        "--test_fraction", type=float, help="share of the images to hold out, if there is no test split"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the one shuffle")
    options = _with_workers(parser, arguments)
    from data_tools import make_shards

    try:
        index = make_shards(**options, progress=True)
    except KeyboardInterrupt:
        raise RunError("interrupted; the same command continues from here") from None
    for name, split in index.splits.items():
        print(f"{name}: {split.num_samples:,} images in {len(split.filenames)} shards")


def _shards_index(arguments: list[str]) -> None:
    """Write the index of shards that others made, beside them. A run makes one itself, with what it finds."""
    parser = Parser("dist-prune shards index", _shards_index.__doc__)
    parser.add_argument("location", metavar="DIR|PATTERN|URL|LIST", help="a folder, tars as X-{0..4}.tar, or a list")
    parser.add_argument("--out", metavar="FILE", help="default: _info.json beside the shards")
    parser.add_argument("--label", metavar="EXTENSION", help="of the members that hold labels: cls, txt or json")
    parser.add_argument("--label_field", default="", metavar="NAME", help="the field of a json member")
    parser.add_argument("--classes", metavar="FILE", help="the names of the classes by number, one a line")
    parser.add_argument("--checksums", action="store_true", help="compute those, too, which reads every byte")
    options = _with_workers(parser, arguments)
    from data_tools.open_shards import Labelling, write_index

    labelling = Labelling(options.pop("label"), options.pop("label_field"), options.pop("classes"))
    path, index = write_index(**options, labelling=labelling, progress=True)
    for name, split in index.splits.items():
        print(f"{name}: {split.num_samples:,} images in {len(split.filenames)} shards")
    print(f"{len(index.class_names):,} classes, by their {index.label.by} in .{index.label.member}: {path}")


def _shards_verify(arguments: list[str]) -> None:
    """Look at every byte of a data set in shards; name each broken shard and sample, and exit with 1."""
    parser = Parser("dist-prune shards verify", _shards_verify.__doc__)
    parser.add_argument("location", metavar="DIR|URL", help="a folder, its _info.json, tars as X-{0..4}.tar")
    parser.add_argument("--split", help="the only one to look at")
    options = _with_workers(parser, arguments)
    from data_tools import verify_shards

    problems = verify_shards(**options, progress=True)
    for problem in problems:
        print(problem)
    if problems:
        raise RunError(f"{options['location']} is damaged: {len(problems)} problem{'s' * (len(problems) > 1)}")
    print(f"{options['location']} is whole")


def _with_workers(parser: Parser, arguments: list[str]) -> dict[str, Any]:
    parser.add_argument("--workers", type=positive(int), help="processes; default: cores")
    options = vars(parser.parse(arguments))
    if options["workers"] is None:
        from joblib import cpu_count  # of the machine, a binding or a container, whichever is the least

        options["workers"] = int(cpu_count())
    return options


def _bytes(text: str) -> int:
    """An argument type: a number of bytes, or of thousands, millions, thousand millions of them."""
    parts = re.fullmatch(r"([1-9][0-9]*)([kMG]?)", text)
    if not parts:
        raise argparse.ArgumentTypeError(f"expected bytes, such as 64M, not {text}")
    return int(parts[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[parts[2]]
