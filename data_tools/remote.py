"""URLs through fsspec, of any protocol: retries for transient errors, one line for permanent ones."""

import errno
import re
from collections.abc import Callable
from typing import Any, TypeVar

import aiohttp
import fsspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from data_tools.errors import ShardError

Result = TypeVar("Result")

RETRIES = 5  # a recipe's ``cache.retries`` has the same default
# The extra of this project that brings the library of a protocol.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
# aiohttp would end every download after five minutes. botocore would itself retry for minutes, which
# looks like a stalled server; and s3fs would report the progress of large objects every 50 MB only.
_HTTP = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None)}}
_S3 = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "max_concurrency": 1}
OPTIONS: dict[str, dict[str, Any]] = {"http": _HTTP, "https": _HTTP, "s3": _S3, "s3a": _S3}

BACK_OFF = wait_random_exponential(multiplier=0.5, max=30)  # seconds; doubles, drawn from 0 to that
PERMANENT = (ShardError, FileNotFoundError, PermissionError, ImportError, ValueError, TypeError)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TRANSIENT_STATUS = (408, 425, 429)  # of those from 400 to 499


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
        raise ShardError(f"cannot use {_unsigned(url)}: the library for {protocol}:// is missing: {wanted}") from error
    except ValueError as error:
        raise ShardError(_unsigned(f"cannot use {url}: {error}")) from error


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
        raise ShardError(f"cannot {what}: {_reason(error, what)}") from error


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
    text = _unsigned(text)
    # Many libraries give nothing but the path here.
    return "not found" if isinstance(error, FileNotFoundError) and text in what else text


def _unsigned(text: str) -> str:
    """Leave out the queries of web addresses: they may be signatures."""
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)
