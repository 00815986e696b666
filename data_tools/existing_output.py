"""Contents of an output that already exists: finished shards with sidecars, a whole data set, or unknown files.

A sidecar stands beside each finished shard until the index is written. It is written before its shard, so a
shard without sidecar and index was made by somebody else.
"""

from pydantic import BaseModel, ConfigDict, ValidationError

from data_tools.errors import ShardError
from data_tools.index import INDEX_NAME, Shard, ShardIndex, describe, parse_index
from data_tools.output import OutputStore
from data_tools.plan import ShardSet, ShardSize
from data_tools.statistics import ImageStatistics

SUFFIX = ".json"


class Sidecar(BaseModel):
    """A finished shard of the data set ``fingerprint``, and the statistics of its images."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    shard: Shard
    statistics: ImageStatistics

    def to_json(self) -> bytes:
        """Return the content of its file."""
        return f"{self.model_dump_json()}\n".encode()


def find_index(output: OutputStore) -> ShardIndex | None:
    """Return the index that is there, if any."""
    data = output.read(INDEX_NAME)
    return parse_index(data, f"{output.root}/{INDEX_NAME}", output.root) if data else None


def matches_request(
    index: ShardIndex, source: str, seed: int, form: str, size: ShardSize, test_fraction: float | None
) -> bool:
    """Compare shards of a data set that needs no folder with a request: a rerun then needs no network."""
    return (
        (index.source, index.seed, index.format) == (source, seed, form)
        and test_fraction is None
        and size.samples is not None
        and all(
            set(split.shard_lengths[:-1]) <= {size.samples} and split.shard_lengths[-1] <= size.samples
            for split in index.splits.values()
        )
    )


def concurrent_index(wanted: ShardSet, output: OutputStore) -> ShardIndex | None:
    """Return the index of another maker that finished while this one read its data.

    Raises:
        ShardError: there is a tar with a name of ours, and no sidecar or index lists it.
    """
    prefix = f"{wanted.raw.name}-"
    tars = sorted(name for name in output.sizes() if name.startswith(prefix) and name.endswith(".tar"))
    # Listed again: a listing may miss a sidecar, but not the tar behind it, written while it was made.
    listed = output.sizes()
    unknown = [name for name in tars if name + SUFFIX not in listed]
    # Read after the listings: makers write the index before they remove their sidecars.
    index = find_index(output)
    if index is None and unknown:
        raise ShardError(
            f"{output.root} already holds {unknown[0]}, which no {INDEX_NAME} there lists: "
            "choose another --out, or remove it and its like"
        )
    return index


def finished_shards(wanted: ShardSet, output: OutputStore) -> dict[str, Sidecar]:
    """Return the sidecars of the shards that an interrupted maker has finished, by the shard's name.

    Raises:
        ShardError: a sidecar is of another data set, or cannot be read.
    """
    sizes = output.sizes()
    prefix = f"{wanted.raw.name}-"
    names = [name for name in sizes if name.startswith(prefix) and name.endswith(f".tar{SUFFIX}")]
    finished = {}
    for name, data in zip(names, output.read_all(names), strict=True):
        if not data:
            continue  # a concurrent maker has finished, and removed it
        try:
            sidecar = Sidecar.model_validate_json(data)
        except ValidationError as error:
            raise ShardError(
                f"cannot read {output.root}/{name} ({describe(error)}): delete that folder, or choose another --out"
            ) from error
        if sidecar.fingerprint != wanted.fingerprint:
            raise ShardError(
                f"{output.root} already holds an unfinished set of other shards: "
                "choose another --out or delete that folder"
            )
        # Its maker may have been interrupted before the shard was in its place.
        if sizes.get(sidecar.shard.name) == sidecar.shard.size:
            finished[sidecar.shard.name] = sidecar
    return finished


def same_shards(index: ShardIndex, wanted: ShardSet, output: OutputStore) -> ShardIndex:
    """Return the index of existing shards, after checking that they are the wanted ones."""
    if index.fingerprint != wanted.fingerprint:
        raise ShardError(
            f"{index.root} already holds other shards ({index.name} from {index.source}, seed {index.seed}): "
            "choose another --out or delete that folder"
        )
    return checked(index, output)


def checked(index: ShardIndex, output: OutputStore) -> ShardIndex:
    """Return an index whose shards are all there, after removing the sidecars of a killed second maker."""
    output.prepare()
    sizes = output.sizes()
    index.check_sizes(sizes)
    remove_sidecars(index, output, sizes)
    return index


def remove_sidecars(index: ShardIndex, output: OutputStore, listed: dict[str, int]) -> None:
    """Remove the sidecars of an index: it holds the same and is read at once."""
    names = (shard.name + SUFFIX for shard in index.shards())
    output.remove_all(name for name in names if name in listed)
