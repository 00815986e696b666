"""Where remote shards come from: a URL, or a command that writes one to its standard output."""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from data_tools.errors import ShardError
from data_tools.location import Location, locate
from data_tools.remote import check_url, download, silence, surplus

PIPE = "pipe:"
CHUNK = 2**20
# A word that names shards or the index; quotes around it stay outside.
SHARD_WORD = re.compile(r"""[^\s'"]*?(?:\.tar|_info\.json)(?=[\s'"?]|$)""")


class Origin(Protocol):
    """A folder of shards elsewhere."""

    def address(self, name: str) -> str:
        """Say where a file of the folder is, for messages."""

    def copy(self, name: str, path: Path, timeout: float, limit: int) -> None:
        """Copy a file of the folder to a local path; one attempt.

        Raises:
            TimeoutError: not a byte came for ``timeout`` seconds.
            ValueError: more than ``limit`` bytes came.
            Exception: whatever else fails.
        """


@dataclass(frozen=True)
class UrlOrigin:
    """A URL that fsspec understands; what follows a ``?`` goes with every file."""

    folder: str
    query: str

    @staticmethod
    def parse(url: str) -> tuple["UrlOrigin", Location]:
        """Take apart a URL of a folder, an index or tars.

        Raises:
            ShardError: it names no server or bucket; or several folders.
        """
        check_url(url)
        # Only web addresses have queries; in object stores a "?" is part of a name.
        query = f"?{urlsplit(url).query}" if url.startswith("http") and "?" in url else ""
        location = locate(url.removesuffix(query).rstrip("/"))
        return UrlOrigin(location.folder, query), location

    def address(self, name: str) -> str:
        """Return the URL of a file, without the query: that may be a signature, which no log should hold."""
        return f"{self.folder}/{name}"

    def copy(self, name: str, path: Path, timeout: float, limit: int) -> None:
        """Copy one file."""
        download(self.address(name) + self.query, path, timeout, limit)


@dataclass(frozen=True)
class CommandOrigin:
    """A command of the user's own; a file's name stands between ``before`` and ``after``."""

    before: str
    after: str

    @staticmethod
    def parse(text: str) -> tuple["CommandOrigin", Location]:
        """Take apart ``pipe:COMMAND``, of which the last word that can be names shards or the index.

        Raises:
            ShardError: there is no such word.
        """
        words = list(SHARD_WORD.finditer(text))
        if not words:
            raise ShardError(
                f"{text} names no shards: the command must end in FOLDER/X-{{000000..000004}}.tar "
                "or FOLDER/_info.json, as it would to write one of them to its standard output"
            )
        word = words[-1]
        location = locate(word.group())
        folder = f"{location.folder}/" if "/" in word.group() else ""
        before = text[len(PIPE) : word.start()] + folder
        return CommandOrigin(before, text[word.end() :]), Location(text, text, location.names)

    def address(self, name: str) -> str:
        """Return the command for a file."""
        return f"{PIPE}{self.before}{name}{self.after}"

    def copy(self, name: str, path: Path, timeout: float, limit: int) -> None:
        """Run the command for one file."""
        command = self.address(name).removeprefix(PIPE)
        with open(path, "wb") as file, tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,  # so that all that the shell starts can be ended together
            )
            try:
                for chunk in _chunks(process, timeout):
                    if file.tell() + len(chunk) > limit:
                        raise ValueError(surplus(limit))
                    file.write(chunk)
                code = process.wait(timeout)
            except (TimeoutError, subprocess.TimeoutExpired):
                raise TimeoutError(silence(timeout)) from None
            finally:
                _end(process)
            if code != 0:
                complaints.seek(0)
                last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
                raise OSError(": ".join([f"the command ended with exit code {code}", *last]))


def _chunks(process: "subprocess.Popen[bytes]", timeout: float) -> Iterator[bytes]:
    """Yield what the process writes; raises TimeoutError after so many seconds of silence."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(timeout):
            chunk = os.read(process.stdout.fileno(), CHUNK)
            if not chunk:
                return
            yield chunk
    raise TimeoutError


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
