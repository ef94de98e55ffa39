"""The one way from the use cases to an orchestrator. Without one nothing happens."""

from __future__ import annotations

from typing import Protocol

from caa.sandbox import Sandbox


class PodReports(Protocol):
    """Who tells the owners of pods what becomes of their sandboxes. Never raises, and holds nobody up for long."""

    def changed(self, sandbox_id: str) -> None:
        """The ledger has something new of the sandbox, or with "" of the node."""
        ...

    async def before_launch(self, sandbox: Sandbox) -> None:
        """The cloud is about to be asked for an instance of the sandbox."""
        ...


class NoReports:
    """Where nobody asks."""

    def changed(self, sandbox_id: str) -> None:
        """Nothing."""

    async def before_launch(self, sandbox: Sandbox) -> None:
        """Nothing."""
