"""Raw image data sets -> WebDataset shards, and the one owner of their index (``_info.json``).

Imports nothing of ``dist_prune``, and no torch, so that shards can be made on any machine.
"""

from data_tools.errors import ShardError
from data_tools.index import ShardIndex, read_index
from data_tools.make import make_shards
from data_tools.sources import SOURCES

__all__ = ["SOURCES", "ShardError", "ShardIndex", "make_shards", "read_index"]
