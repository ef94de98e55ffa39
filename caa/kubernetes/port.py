"""The ways from the use cases to an orchestrator. Without one nothing happens."""

from __future__ import annotations

from collections.abc import Mapping
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


class PullSecrets(Protocol):
    """Who knows the image pull secrets of pods. Never raises, and holds nobody up for long."""

    async def of_pod(self, sandbox: Sandbox) -> tuple[Mapping[str, str], list[str]]:
        """Registry -> base64 of "user:password", for that pod alone; and what was left out, a sentence each."""
        ...


class NoPullSecrets:
    """Where pod VMs are sent none."""

    async def of_pod(self, sandbox: Sandbox) -> tuple[Mapping[str, str], list[str]]:
        """None."""
        return {}, []
