"""Raw data sets that shards can be made of: one class per source, all of them listed here."""

from data_tools.errors import ShardError, suggestion
from data_tools.sources.arrays import CIFAR10, CIFAR100, Digits, Svhn
from data_tools.sources.base import RawDataset
from data_tools.sources.imagefolder import ImageFolder, TinyImageNet
from data_tools.sources.imagenet import ImageNet

SOURCES: dict[str, RawDataset] = {
    "digits": Digits(),
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": Svhn(),
    "tiny-imagenet": TinyImageNet(),
    "imagenet": ImageNet(),
    "imagefolder": ImageFolder(),
}


def find_source(name: str) -> RawDataset:
    """Return the raw data set of that name.

    Raises:
        ShardError: no such source; names the known ones and the nearest.
    """
    if name not in SOURCES:
        raise ShardError(f"unknown source {name!r}{suggestion(name, SOURCES)}; known: {', '.join(SOURCES)}")
    return SOURCES[name]
