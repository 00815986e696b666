"""URLs through fsspec, whatever the protocol: patience with what passes, one line for what does not."""

import errno
import queue
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import fsspec
from fsspec.callbacks import Callback
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from data_tools.errors import ShardError

Result = TypeVar("Result")

# Which extra of this project brings the library for a protocol.
EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
}
# aiohttp would end every download after five minutes. botocore would try again for minutes by itself,
# which looks like a stalled source; and s3fs would report the progress of large objects every 50 MB only.
_HTTP = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None)}}
_S3 = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "max_concurrency": 1}
OPTIONS: dict[str, dict[str, Any]] = {"http": _HTTP, "https": _HTTP, "s3": _S3, "s3a": _S3}

BACK_OFF = wait_random_exponential(multiplier=0.5, max=30)  # seconds; doubles, drawn from 0 to that
PERMANENT = (ShardError, FileNotFoundError, PermissionError, ImportError, ValueError, TypeError)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
PASSING_STATUS = (408, 425, 429)  # of those from 400 to 499


def is_url(location: str) -> bool:
    """Whether a location is a URL rather than a local path."""
    return "://" in location


def check_url(url: str) -> None:
    """Refuse a URL of a protocol and nothing else.

    Raises:
        ShardError: it names no server or bucket.
    """
    if not url.split("://", 1)[1].strip("/"):
        raise ShardError(f"{url} names no bucket or server: expected PROTOCOL://PLACE/FOLDER")


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, made in this process, and the path in it.

    Raises:
        ShardError: no such protocol, or its library is not installed.
    """
    protocol = url.split("://")[0]
    try:
        return fsspec.core.url_to_fs(url, **OPTIONS.get(protocol, {}))
    except ImportError as error:
        wanted = f"pip install 'dist-prune[{EXTRAS[protocol]}]'" if protocol in EXTRAS else str(error)
        raise ShardError(
            f"cannot use {_unsigned(url)}: the library for {protocol}:// is missing: {wanted}"
        ) from error
    except ValueError as error:
        raise ShardError(_unsigned(f"cannot use {url}: {error}")) from error


def patiently(action: Callable[[], Result], what: str, retries: int) -> Result:
    """Return ``action()``, tried again up to ``retries`` times after errors that may pass.

    Raises:
        ShardError: "cannot ``what``", and why.
    """
    attempts = Retrying(
        stop=stop_after_attempt(retries + 1),
        wait=BACK_OFF,
        retry=retry_if_exception(_may_pass),
        reraise=True,
    )
    try:
        return attempts(action)
    except ShardError:
        raise
    except Exception as error:  # every protocol has errors of its own
        raise ShardError(f"cannot {what}: {_reason(error, what)}") from error


def download(url: str, path: Path, timeout: float, limit: int) -> None:
    """Copy what a URL gives into a file; one attempt.

    Raises:
        TimeoutError: not a byte came for ``timeout`` seconds.
        ValueError: more than ``limit`` bytes came.
        Exception: anything that the protocol's library raises.
    """
    files, remote = filesystem(url)
    progress = _Progress(limit)

    def copy() -> None:
        try:
            files.get_file(remote, str(path), callback=progress)
            progress.beats.put(True)
        except BaseException as error:
            progress.beats.put(error)

    # A thread of its own, because not every library has time limits; one that hangs is left behind.
    threading.Thread(target=copy, daemon=True).start()
    try:
        while not (beat := progress.beats.get(timeout=timeout)):
            pass
    except queue.Empty:
        progress.given_up = True
        raise TimeoutError(silence(timeout)) from None
    if isinstance(beat, BaseException):
        raise beat


def silence(timeout: float) -> str:
    """Return the message about a source that stalled."""
    return f"no byte came for {timeout:g} s; it or the network hangs: try again later"


def surplus(limit: int) -> str:
    """Return the message about a source that sends more than it should."""
    return f"more than {limit} bytes came, which are expected at the most"


class _Progress(Callback):
    """Hears of every piece that arrives; an error that it raises ends the copy."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.beats: queue.SimpleQueue[BaseException | bool] = queue.SimpleQueue()
        self.given_up = False
        self._limit = limit

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        if self.given_up:
            raise TimeoutError("nobody waits for it any more")
        if self.value > self._limit:
            raise ValueError(surplus(self._limit))
        self.beats.put(False)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, PERMANENT) or getattr(error, "errno", None) in FULL_DISK:
        return False
    status = _status(error)
    return status is None or not 400 <= status < 500 or status in PASSING_STATUS


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error, which every library keeps under a name of its own."""
    values = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((value for value in values if isinstance(value, int)), None)


def _reason(error: BaseException, what: str) -> str:
    text = re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__
    if isinstance(error, aiohttp.ClientResponseError):
        text = f"{error.status} {error.message}"
    text = _unsigned(text)
    return "not found" if isinstance(error, FileNotFoundError) and text in what else text


def _unsigned(text: str) -> str:
    """Leave out the queries of web addresses: they may be signatures."""
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)
