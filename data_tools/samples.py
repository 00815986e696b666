"""What a sample in a shard is: which members belong together, and which labels there are.

The reader of batches and the verification both go by this, so that what one calls whole, the other reads.
"""

from collections.abc import Iterable, Iterator

from data_tools.tar import Member

IMAGES = ("jpg", "png")  # the extensions of members of ``files`` shards
LABEL = "cls"
RAW = ("images.npy", "labels.npy")  # of ``raw`` shards

LARGEST_IMAGE = 256 * 2**20  # encoded bytes
SHOWN = 4  # names in a message
LONGEST_LABEL = 32  # bytes; more are no label, whatever they are

Parts = dict[str, Member]  # the members of one key, by extension


def samples(members: Iterable[Member]) -> Iterator[tuple[str, Parts]]:
    """Group consecutive members of one key, as WebDataset does; a part that comes again begins another sample.

    Groups of neither an image nor a label, such as a README, come too; ``is_sample`` tells.
    """
    key, parts = "", Parts()
    for member in members:
        stem, extension = split_name(member.name)
        if parts and (stem != key or extension in parts):
            yield key, parts
            parts = {}
        key, parts[extension] = stem, member
    if parts:
        yield key, parts


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension: what comes before and after the first dot behind the last slash."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def is_sample(parts: Parts) -> bool:
    """Whether a group counts as a sample, perhaps a broken one."""
    return LABEL in parts or any(extension in parts for extension in IMAGES)


def images_of(parts: Parts) -> list[Member]:
    """Return the images of a sample; all but one are too many or too few."""
    return [parts[extension] for extension in IMAGES if extension in parts]


def raw_arrays(members: Iterable[Member]) -> tuple[Member, Member]:
    """Return the images and the labels of a raw shard.

    Raises:
        ValueError: it holds anything else.
    """
    held = sorted(members)
    key = split_name(held[0].name)[0] if held else ""
    if [member.name for member in held] != [f"{key}.{part}" for part in RAW]:
        shown = ", ".join(member.name for member in held[:SHOWN]) or "nothing"
        shown += f" and {len(held) - SHOWN} more" if len(held) > SHOWN else ""
        raise ValueError(f"it holds {shown} where KEY.{RAW[0]} and KEY.{RAW[1]} are expected")
    return held[0], held[1]


def class_labels(classes: int) -> dict[str, int]:
    """Return the class numbers by the only text that each is written as: ``1``, not ``01``."""
    return {str(label): label for label in range(classes)}


def no_class(label: str, classes: int) -> str:
    """Return the message about a label that is none of ``class_labels``."""
    return f"label {label[:20]!r} is none of the classes 0 to {classes - 1}"
