"""Where raw images come from: one class per source, all of them listed here."""

import difflib

from data_tools.errors import ShardError
from data_tools.sources.base import Source
from data_tools.sources.cifar import CIFAR10, CIFAR100
from data_tools.sources.digits import Digits
from data_tools.sources.imagefolder import ImageFolder
from data_tools.sources.imagenet import ImageNet
from data_tools.sources.svhn import Svhn
from data_tools.sources.tiny_imagenet import TinyImageNet

SOURCES: dict[str, Source] = {
    "digits": Digits(),
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "svhn": Svhn(),
    "tiny-imagenet": TinyImageNet(),
    "imagenet": ImageNet(),
    "imagefolder": ImageFolder(),
}


def find_source(name: str) -> Source:
    """Return the source of that name.

    Raises:
        ShardError: no such source; names the known ones and the nearest.
    """
    if name not in SOURCES:
        raise ShardError(
            f"unknown source {name!r}{suggestion(name, list(SOURCES))}; known: {', '.join(SOURCES)}"
        )
    return SOURCES[name]


def suggestion(name: str, known: list[str]) -> str:
    """Return ``" (did you mean 'X'?)"`` for the known name nearest to ``name``, or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


__all__ = ["SOURCES", "Source", "find_source", "suggestion"]
