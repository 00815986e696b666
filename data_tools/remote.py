"""Remote files: URLs of any protocol through fsspec, and commands that write a file to their standard output.

Transient errors are retried, permanent ones are one line, and a transfer that stalls or sends too much is ended.
"""

import contextlib
import errno
import ipaddress
import os
import queue
import re
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
import fsspec
from fsspec.callbacks import Callback
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from data_tools.errors import ShardError

Result = TypeVar("Result")

PIPE = "pipe:"
# Of URLs that stand in files of others. fsspec's chains (a::b) and its protocols that refer to others render templates
# and open what these name.
PLAIN_PROTOCOLS = ("file", "http", "https", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")
CHUNK = 2**20  # bytes
RETRIES = 5  # a recipe's ``cache.retries`` has the same default
# The extra of this project that brings the library of a protocol.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}


async def _check_redirect(_: object, __: object, found: aiohttp.TraceRequestRedirectParams) -> None:
    """Refuse to follow a server of the internet into this machine or its own network."""
    target = urlsplit(urljoin(str(found.url), found.response.headers.get("Location", ""))).hostname
    if _is_private(target) and not _is_private(found.url.host):
        raise ShardError(f"{unsigned(str(found.url))} redirects to {target}, which is in a private network")


def _is_private(host: str | None) -> bool:
    with contextlib.suppress(OSError, ValueError):
        addresses = [found[4][0] for found in socket.getaddrinfo(host, None)]
        return not all(ipaddress.ip_address(address).is_global for address in addresses)
    return False


_redirects = aiohttp.TraceConfig()
_redirects.on_request_redirect.append(_check_redirect)
# aiohttp would end every download after five minutes, and heed no HTTP_PROXY. botocore would itself retry for minutes,
# which looks like a stalled server; and s3fs would report the progress of large objects every 50 MB only.
_HTTP = {
    "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None), "trust_env": True, "trace_configs": [_redirects]}
}
_S3 = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "max_concurrency": 1}
OPTIONS: dict[str, dict[str, Any]] = {"http": _HTTP, "https": _HTTP, "s3": _S3, "s3a": _S3}

BACK_OFF = wait_random_exponential(multiplier=0.5, max=30)  # seconds; doubles, drawn from 0 to that
PERMANENT = (ShardError, FileNotFoundError, PermissionError, ImportError, ValueError, TypeError)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TRANSIENT_STATUS = (408, 425, 429)  # of those from 400 to 499


class NotThere(ShardError):
    """There is no such file."""


def is_plain(url: str) -> bool:
    """Return True for a URL that names a file and nothing else."""
    return "::" not in url and url.split("://")[0] in PLAIN_PROTOCOLS


def is_url(text: str) -> bool:
    """Return True for a URL, False for a local path."""
    return "://" in text


def check_url(url: str) -> None:
    """Refuse a URL that consists of a protocol alone."""
    if not url.split("://", 1)[1].strip("/"):
        raise ShardError(f"{url} names no bucket or server: expected PROTOCOL://PLACE/FOLDER")


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, made in this process, and the path in it."""
    protocol = url.split("://")[0]
    try:
        return fsspec.core.url_to_fs(url, **OPTIONS.get(protocol, {}))
    except ImportError as error:
        wanted = f"pip install 'dist-prune[{EXTRAS[protocol]}]'" if protocol in EXTRAS else str(error)
        raise ShardError(f"cannot use {unsigned(url)}: the library for {protocol}:// is missing: {wanted}") from error
    except ValueError as error:
        raise ShardError(unsigned(f"cannot use {url}: {error}")) from error


def with_retries(action: Callable[[], Result], what: str, retries: int = RETRIES) -> Result:
    """Return ``action()``, tried again up to ``retries`` times after transient errors.

    Raises:
        ShardError: "cannot ``what``", and why.
    """
    attempts = Retrying(
        stop=stop_after_attempt(retries + 1), wait=BACK_OFF, retry=retry_if_exception(_is_transient), reraise=True
    )
    try:
        return attempts(action)
    except ShardError:
        raise
    except Exception as error:  # every protocol has errors of its own
        # Web servers of buckets answer 403 for what is not there.
        status = getattr(error, "status", None)
        kind = NotThere if isinstance(error, FileNotFoundError) or status in (403, 404, 410) else ShardError
        raise kind(f"cannot {what}: {_reason(error, what)}") from error


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, PERMANENT) or getattr(error, "errno", None) in FULL_DISK:
        return False
    # Each library keeps the HTTP status under a name of its own.
    values = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    status = next((value for value in values if isinstance(value, int)), None)
    return status is None or not 400 <= status < 500 or status in TRANSIENT_STATUS


def _reason(error: Exception, what: str) -> str:
    # The message of an error of the file system repeats the path.
    plain = error.strerror if isinstance(error, OSError) and error.filename else ""
    text = plain or re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__
    if isinstance(error, aiohttp.ClientResponseError):
        text = f"{error.status} {error.message}"
    text = unsigned(text)
    # Many libraries give nothing but the path here.
    return "not found" if isinstance(error, FileNotFoundError) and text in what else text


def unsigned(text: str) -> str:
    """Leave out the queries of web addresses: they may be signatures."""
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def copy_file(address: str, path: Path, timeout: float, limit: int) -> None:
    """Copy what a URL or a ``pipe:`` command gives to a local path; one attempt.

    Raises:
        TimeoutError: not a byte arrived for ``timeout`` seconds.
        ValueError: more than ``limit`` bytes arrived.
        Exception: any other failure.
    """
    if address.startswith(PIPE):
        _copy_output(address.removeprefix(PIPE), path, timeout, limit)
        return
    files, remote = filesystem(address)
    _watch(lambda progress: files.get_file(remote, str(path), callback=progress), timeout, limit)


def list_files(url: str, timeout: float) -> list[str]:
    """Return the files in a folder at a URL, by their paths below it; of web servers those that its page links to."""
    files, folder = filesystem(url)
    found: list[str] = []
    # Links of web pages lead anywhere, so nobody follows them.
    listed = files.ls if url.startswith("http") else files.find
    _watch(lambda _: found.extend(listed(folder, **({"detail": False} if url.startswith("http") else {}))), timeout, 0)
    prefix = folder.rstrip("/") + "/"
    return [path.removeprefix(prefix) for path in found if path.startswith(prefix)]


def _copy_output(command: str, path: Path, timeout: float, limit: int) -> None:
    with open(path, "wb") as file, tempfile.TemporaryFile() as errors:
        # In a session of its own, so that all processes of the shell can be ended together.
        process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
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
