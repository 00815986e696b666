"""Raw image data sets -> WebDataset shards, and the one owner of their index (``_info.json``).

Imports nothing of ``dist_prune``, and no torch, so that shards can be made on any machine.
"""

from data_tools.errors import ShardError
from data_tools.index import ShardIndex, read_index
from data_tools.make import make_shards
from data_tools.sources import SOURCES
from data_tools.storage import Storage, open_storage
from data_tools.verify import verify_shards

__all__ = [
    "SOURCES",
    "ShardError",
    "ShardIndex",
    "Storage",
    "make_shards",
    "open_storage",
    "read_index",
    "verify_shards",
]
