"""What already lies where shards are to be made: the ones asked for, others, or what nobody knows of."""

from data_tools.errors import ShardError
from data_tools.index import ShardIndex, parse_index
from data_tools.journal import JOURNAL_NAME, Journal
from data_tools.location import INDEX_NAME
from data_tools.places import Place
from data_tools.shard_set import ShardSet, ShardSize


def find_index(place: Place) -> ShardIndex | None:
    """Return the index that is there, if any.

    Raises:
        ShardError: it cannot be right.
    """
    data = place.read(INDEX_NAME)
    return parse_index(data, f"{place.root}/{INDEX_NAME}", place.root) if data else None


def was_asked_for(
    index: ShardIndex, source: str, seed: int, form: str, size: ShardSize, test_fraction: float | None
) -> bool:
    """Whether shards of a data set that needs no folder are the ones asked for: a rerun needs no network."""
    return (
        (index.source, index.seed, index.format) == (source, seed, form)
        and test_fraction is None
        and size.samples is not None
        and all(
            set(split.shard_lengths[:-1]) <= {size.samples} and split.shard_lengths[-1] <= size.samples
            for split in index.splits.values()
        )
    )


def other_makers_index(wanted: ShardSet, place: Place, journal: Journal) -> ShardIndex | None:
    """Return the index of another maker that finished while this one read its data; refuse strangers.

    Makers begin with the journal, and put the index there before they remove it. So shards that are there
    first, and then neither journal nor index, are nobody's: not to be overwritten, nor to lie among others.

    Raises:
        ShardError: there is a tar of a name of ours, and nothing tells whose.
    """
    there = place.sizes()
    if journal.exists():
        return None
    index = find_index(place)
    if index is None:
        for name in sorted(there):
            if name.startswith(f"{wanted.raw.name}-") and name.endswith(".tar"):
                raise ShardError(
                    f"{place.root} already holds {name}, of which no {INDEX_NAME} there tells: "
                    "choose another --out, or remove it and its like"
                )
    return index


def same_shards(index: ShardIndex, wanted: ShardSet, place: Place) -> ShardIndex:
    """Return the index of the shards that are there already, after looking that they are the ones asked for.

    Raises:
        ShardError: they are others, or not whole.
    """
    if index.fingerprint != wanted.fingerprint:
        raise ShardError(
            f"{index.root} already holds other shards ({index.name} from {index.source}, seed {index.seed}): "
            "choose another --out or delete that folder"
        )
    return checked(index, place)


def checked(index: ShardIndex, place: Place) -> ShardIndex:
    """Return an index whose shards are all there, after removing what a killed second maker of them left.

    Raises:
        ShardError: a shard is missing or of another size.
    """
    place.prepare()
    there = place.sizes()
    index.check_sizes(there)
    if JOURNAL_NAME in there:
        place.remove(JOURNAL_NAME)
    return index
