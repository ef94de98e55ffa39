"""What the API server's answers mean to whoever asked: try later, give up, or fine as it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from lightkube.core.exceptions import ApiError
from lightkube.core.exceptions import ConfigError as LightkubeConfigError

from providers.base import ConfigError, Problem

Client = TypeVar("Client")

# A healthy API server answers in well under a second, also when it is throttled by its own limits.
TIMEOUT_SECONDS = 5.0
ABSENT, CONFLICT, EXPIRED = 404, 409, 410
# The server cannot answer now: try again later. 401 is a token about to be renewed, 410 a version that it forgot.
PASSING = frozenset({401, 408, CONFLICT, EXPIRED, 429, 500, 502, 503, 504})


class AwayError(Exception):
    """The API server cannot be reached, or is not able to answer now. `wait` is for how many seconds it asked."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class RefusedError(Exception):
    """The API server said no, and will again: a right or a kind of object is missing, or the namespace goes."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def connected(make: Callable[..., Client], key: str, value: str) -> Client:
    """A client of lightkube. Raises ConfigError naming `key` when nothing says where the API server is."""
    try:
        return make(timeout=httpx2.Timeout(TIMEOUT_SECONDS))
    except (LightkubeConfigError, OSError) as error:
        why = str(error)
    except Exception as error:
        # What the library makes of a file that lacks something. It may quote the file, tokens included.
        file = os.environ.get("KUBECONFIG", "") or "the configuration of kubectl"
        why = f"{file} is not one that can be read: {type(error).__name__}"
    raise ConfigError([Problem(key, f"{value!r} is not allowed here: where the API server is cannot be told ({why})")])


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """The client's errors become AwayError and RefusedError."""
    try:
        yield
    except httpx2.HTTPStatusError as error:
        status = _status(error)
        if status in PASSING:
            raise AwayError(f"the API server answered {status}: {error}", _wait(error)) from error
        raise RefusedError(status, str(error)) from error
    except (httpx2.TransportError, OSError) as error:
        raise AwayError(f"the API server cannot be reached: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def fine(status: int) -> Iterator[None]:
    """An answer with this status is none to complain of."""
    try:
        yield
    except httpx2.HTTPStatusError as error:
        if _status(error) != status:
            raise


def _status(error: httpx2.HTTPStatusError) -> int:
    if isinstance(error, ApiError) and error.response is None:  # in the middle of a watch
        return int(error.status.code or 0)
    return int(error.response.status_code)


def _wait(error: httpx2.HTTPStatusError) -> float:
    given = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    return float(given) if given.isdecimal() else 0.0
