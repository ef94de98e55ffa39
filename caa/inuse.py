"""The provider in use, exchanged while others use it: each user keeps the one it began with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from providers.base import Provider


class InUse:
    """Hands out the current provider. One that was exchanged is given to `close` when its last user is done.

    For one event loop: nothing here waits, so no exchange falls between two lines of it.
    """

    def __init__(self, provider: Provider, close: Callable[[Provider], None]) -> None:
        self.current = provider
        self._close = close
        self._users: dict[int, int] = {}  # by id() of the provider, which lives as long as it has users

    @contextlib.contextmanager
    def use(self) -> Iterator[Provider]:
        """The provider of now, which stays open until this ends."""
        provider = self.current
        self._users[id(provider)] = self._users.get(id(provider), 0) + 1
        try:
            yield provider
        finally:
            left = self._users.pop(id(provider)) - 1
            if left:
                self._users[id(provider)] = left
            elif provider is not self.current:
                self._close(provider)

    def exchange(self, provider: Provider) -> None:
        """Who asks from now on gets this one."""
        old, self.current = self.current, provider
        if id(old) not in self._users:
            self._close(old)
