"""The one exception about data that a user can mend."""

import re


class ShardError(Exception):
    """A mistake about data; the message is one line: what is wrong, where, and how to mend it."""

    def __init__(self, message: str) -> None:
        # What libraries say, which messages repeat, may have several.
        super().__init__(re.sub(r"\s*\n\s*", " ", message))
