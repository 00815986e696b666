"""Image data from WebDataset shards, split over ranks and workers."""

from dist_prune.data.loader import ImageData
from dist_prune.data.locate import open_data
from dist_prune.data.transforms import Augment

__all__ = ["Augment", "ImageData", "open_data"]
