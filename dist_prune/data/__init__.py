"""Image data from WebDataset shards, split over ranks and workers."""

from data_tools import ShardError
from dist_prune.data.loader import ImageData
from dist_prune.data.locate import open_data

__all__ = ["ImageData", "ShardError", "open_data"]
