"""What a user calls a place of shards: a folder, its index, or some of its tars."""

from dataclasses import dataclass

import braceexpand

from data_tools.errors import ShardError

INDEX_NAME = "_info.json"


@dataclass(frozen=True)
class Location:
    """A folder or URL of shards; ``names`` are the shards that the user chose, None for all."""

    text: str
    folder: str
    names: frozenset[str] | None = None

    def __str__(self) -> str:
        return self.text


def locate(text: str) -> Location:
    """Take apart ``FOLDER``, ``FOLDER/_info.json`` or ``FOLDER/X-{000000..000004}.tar``; also for URLs.

    Raises:
        ShardError: there is nothing, braces do not match, or the tars lie in several folders.
    """
    if not text:
        raise ShardError("the place of the shards is empty: give a folder, or the URL of one")
    folder, _, name = text.rpartition("/")
    if name == INDEX_NAME:
        return Location(text, folder or ".")
    if not text.endswith(".tar"):
        return Location(text, text)
    try:
        paths = list(braceexpand.braceexpand(text))
    except ValueError as error:
        raise ShardError(f"{text}: {error}; expected FOLDER/X-{{000000..000004}}.tar") from error
    pairs = [path.rpartition("/")[::2] for path in paths]
    folders = {folder for folder, _ in pairs}
    if len(folders) > 1:
        raise ShardError(f"{text} names tars in {len(folders)} folders: one data set lies in one folder")
    return Location(text, folders.pop() or ".", frozenset(name for _, name in pairs))
