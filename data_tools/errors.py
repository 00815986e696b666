"""The one exception about data that a user can mend."""


class ShardError(Exception):
    """A mistake about data; the message is one line: what is wrong, where, and how to mend it."""
