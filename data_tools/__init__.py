"""Raw image data sets -> WebDataset shards, and the one owner of their index (``_info.json``).

Imports nothing of ``dist_prune``, and no torch, so that shards can be made on any machine.

Faults that a user can fix are raised as ShardError, those of one image as ImageError, whose caller adds the place.
"""

from data_tools.errors import ShardError
from data_tools.index import Shard, ShardIndex
from data_tools.make import make_shards
from data_tools.sources import SOURCES
from data_tools.store import ShardStore, open_store, read_index
from data_tools.verify import verify_shards

__all__ = [
    "SOURCES",
    "Shard",
    "ShardError",
    "ShardIndex",
    "ShardStore",
    "make_shards",
    "open_store",
    "read_index",
    "verify_shards",
]
