"""Image data from WebDataset shards, split over ranks and workers."""

from data_tools import ShardError
from dist_prune.data.batches import ReadingFailed
from dist_prune.data.loader import ImageData
from dist_prune.data.opening import open_data
from dist_prune.data.transforms import Batch

__all__ = ["Batch", "ImageData", "ReadingFailed", "ShardError", "open_data"]
