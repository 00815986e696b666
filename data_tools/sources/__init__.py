"""Raw data sets that shards can be made of."""

from data_tools.sources.arrays import CIFAR10, CIFAR100, read_digits, read_svhn
from data_tools.sources.base import RawDataset
from data_tools.sources.folders import read_imagefolder, read_tiny_imagenet
from data_tools.sources.imagenet import read_imagenet
from data_tools.sources.raw import read_raw

SOURCES = {
    "digits": RawDataset(read_digits, samples_per_shard=360),
    "cifar10": RawDataset(CIFAR10.read),
    "cifar100": RawDataset(CIFAR100.read),
    "svhn": RawDataset(read_svhn),
    "tiny-imagenet": RawDataset(read_tiny_imagenet),
    "imagenet": RawDataset(read_imagenet, takes_test_fraction=True),
    "imagefolder": RawDataset(read_imagefolder, is_dataset=False, takes_test_fraction=True),
    "raw": RawDataset(read_raw, is_dataset=False),
}
