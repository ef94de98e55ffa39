"""Work done inside another network namespace of this machine. Standard library only."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from caa.podnetwork.errors import PodNetworkError

_CLONE_NEWNET = 0x40000000  # linux/sched.h
# Python has os.setns from 3.12 on only.
_libc = ctypes.CDLL(None, use_errno=True)

Result = TypeVar("Result")


class NamespaceGone(PodNetworkError):
    """There is no network namespace at this path (any more)."""


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the namespace at `path`, for as long as the block runs. Raises NamespaceGone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceGone(f"cannot open the network namespace {path!r}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def inside(namespace: int, work: Callable[[], Result]) -> Result:
    """Call `work` inside the namespace with this descriptor; its result or exception is passed on."""

    def enter_and_work() -> Result:
        enter(namespace)
        return work()

    return in_new_thread(enter_and_work)


def in_new_thread(work: Callable[[], Result]) -> Result:
    """Call `work` in a thread that may `enter` a namespace; its result or exception is passed on.

    A thread changes its namespace for itself alone. This one starts in its caller's and ends afterwards, so that none
    which is used again can be left in the wrong place.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="network-namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def enter(namespace: int) -> None:
    """Put this thread into the namespace for the rest of its life. Only for threads of `in_new_thread`."""
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise PodNetworkError(f"cannot enter the network namespace: {os.strerror(ctypes.get_errno())}")
