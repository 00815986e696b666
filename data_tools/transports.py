"""Transports of remote shards: a URL, or a command that writes a shard to its standard output."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import braceexpand
from fsspec.callbacks import Callback

from data_tools.errors import ShardError
from data_tools.index import INDEX_NAME
from data_tools.remote import check_url, filesystem

PIPE = "pipe:"
CHUNK = 2**20
# A word that names shards or the index; quotes around it stay outside.
SHARD_WORD = re.compile(r"""[^\s'"]*?(?:\.tar|_info\.json)(?=[\s'"?]|$)""")


@dataclass(frozen=True)
class ShardSpec:
    """Location of shards as the user wrote it: a folder or URL, and the names of the chosen ones (None: all)."""

    text: str
    folder: str
    names: frozenset[str] | None = None

    def __str__(self) -> str:
        return self.text

    @staticmethod
    def parse(text: str) -> "ShardSpec":
        """Parse ``FOLDER``, ``FOLDER/_info.json`` or ``FOLDER/X-{000000..000004}.tar``; also of URLs."""
        if not text:
            raise ShardError("the location of the shards is empty: give a folder, or the URL of one")
        folder, _, name = text.rpartition("/")
        if name == INDEX_NAME:
            return ShardSpec(text, folder or ".")
        if not text.endswith(".tar"):
            return ShardSpec(text, text)
        try:
            paths = list(braceexpand.braceexpand(text))
        except ValueError as error:
            raise ShardError(f"{text}: {error}; expected FOLDER/X-{{000000..000004}}.tar") from error
        pairs = [path.rpartition("/")[::2] for path in paths]
        folders = {folder for folder, _ in pairs}
        if len(folders) > 1:
            raise ShardError(f"{text} names tars in {len(folders)} folders: one data set is in one folder")
        return ShardSpec(text, folders.pop() or ".", frozenset(name for _, name in pairs))


@dataclass(frozen=True)
class UrlTransport:
    """A URL that fsspec understands; the part after a ``?`` is appended to every file."""

    folder: str
    query: str

    @staticmethod
    def parse(url: str) -> tuple["UrlTransport", ShardSpec]:
        """Parse a URL of a folder, an index or tars."""
        check_url(url)
        # Only web addresses have queries; in object stores a "?" is part of a name.
        query = f"?{urlsplit(url).query}" if url.startswith("http") and "?" in url else ""
        spec = ShardSpec.parse(url.removesuffix(query).rstrip("/"))
        return UrlTransport(spec.folder, query), spec

    def address(self, name: str) -> str:
        """Return the URL of a file, without the query: that may be a signature, which no log should hold."""
        return f"{self.folder}/{name}"

    def copy(self, name: str, path: Path, timeout: float, limit: int) -> None:
        """Copy a file of the folder to a local path; one attempt.

        Raises:
            TimeoutError: not a byte arrived for ``timeout`` seconds.
            ValueError: more than ``limit`` bytes arrived.
            Exception: any other failure.
        """
        files, remote = filesystem(self.address(name) + self.query)
        _watch(lambda progress: files.get_file(remote, str(path), callback=progress), timeout, limit)


@dataclass(frozen=True)
class CommandTransport:
    """A command of the user; the name of a file goes between ``before`` and ``after``."""

    before: str
    after: str

    @staticmethod
    def parse(text: str) -> tuple["CommandTransport", ShardSpec]:
        """Parse ``pipe:COMMAND``: the last word that can be one names the shards or the index."""
        words = list(SHARD_WORD.finditer(text))
        if not words:
            raise ShardError(
                f"{text} names no shards: the command must end in FOLDER/X-{{000000..000004}}.tar "
                "or FOLDER/_info.json, as it would to write one of them to its standard output"
            )
        word = words[-1]
        spec = ShardSpec.parse(word.group())
        folder = f"{spec.folder}/" if "/" in word.group() else ""
        before = text[len(PIPE) : word.start()] + folder
        return CommandTransport(before, text[word.end() :]), ShardSpec(text, text, spec.names)

    def address(self, name: str) -> str:
        """Return the command for a file."""
        return f"{PIPE}{self.before}{name}{self.after}"

    def copy(self, name: str, path: Path, timeout: float, limit: int) -> None:
        """Run the command for one file, as ``UrlTransport.copy``."""
        command = self.address(name).removeprefix(PIPE)
        with open(path, "wb") as file, tempfile.TemporaryFile() as errors:
            # In a session of its own, so that all processes of the shell can be ended together.
            streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": errors}
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command, shell=True, stdin=subprocess.DEVNULL, start_new_session=True, **streams
            )
            assert process.stdout is not None
            output = process.stdout.fileno()

            def receive(progress: "_Progress") -> None:
                while chunk := os.read(output, CHUNK):
                    progress.relative_update(len(chunk))  # raises before the surplus is written
                    file.write(chunk)

            try:
                _watch(receive, timeout, limit)
                code = process.wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise TimeoutError(_silence(timeout)) from error
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                process.stdout.close()
            if code != 0:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise OSError(": ".join([f"the command ended with exit code {code}", *last]))


Transport = UrlTransport | CommandTransport


class _Progress(Callback):
    """Counts the bytes that arrive; an error that it raises ends the transfer."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.beats: queue.SimpleQueue[BaseException | bool] = queue.SimpleQueue()
        self.abandoned = False
        self._limit = limit

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        if self.abandoned:
            raise TimeoutError("the transfer was abandoned")
        if self.value > self._limit:
            raise ValueError(f"more than {self._limit} bytes arrived, at most {self._limit} are expected")
        self.beats.put(False)


def _watch(transfer: Callable[[_Progress], object], timeout: float, limit: int) -> None:
    """Run a transfer that reports its progress; raise TimeoutError after ``timeout`` seconds without any."""
    progress = _Progress(limit)

    def run() -> None:
        try:
            transfer(progress)
            progress.beats.put(True)
        except BaseException as error:
            progress.beats.put(error)

    # Not every library has time limits, so a thread does the work; one that hangs is abandoned.
    threading.Thread(target=run, daemon=True).start()
    try:
        while not (beat := progress.beats.get(timeout=timeout)):
            pass
    except queue.Empty:
        progress.abandoned = True
        raise TimeoutError(_silence(timeout)) from None
    if isinstance(beat, BaseException):
        raise beat


def _silence(timeout: float) -> str:
    return f"no byte arrived for {timeout:g} s; the server or the network hangs: try again later"
