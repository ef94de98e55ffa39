"""The tunnels of this node's sandboxes as the use cases see them: asynchronous, their ids from the ledger."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol
from weakref import WeakValueDictionary

from caa.clock import Clock
from caa.errors import CallError, InvalidInputError, StartFailedError
from caa.ledger import Ledger
from caa.ledgerthreads import LedgerThreads
from caa.podnetwork import tunnel, worker
from caa.podnetwork.config import FIRST_TUNNEL_ID, PodNetwork, from_json
from caa.podnetwork.errors import PodNetworkError
from caa.podnetwork.worker import TunnelSettings
from caa.sandbox import Sandbox, SandboxState
from caa.threads import Threads
from providers.base import OwnerScope

log = logging.getLogger(__name__)

# A tunnel takes some 15 ms, nearly all of it the kernel's and iptables', which do one thing at a time.
WORKERS = 4
# A VM that was told to end may send for a moment more, and its packets must not come to the next pod.
ID_REST = timedelta(minutes=10)
# The worker's own network namespace; every process has it under this name until it leaves it.
OWN_NAMESPACE = "/proc/self/ns/net"


class Metadata(Protocol):
    """Who answers what a pod asks of its VM: `caa.metadata.service.MetadataService`."""

    async def open(self, sandbox: Sandbox, network: PodNetwork) -> None:
        """Answer this pod. Raises PodNetworkError."""
        ...

    async def close(self, sandbox: Sandbox, network: PodNetwork) -> None:
        """Answer it no more. Raises PodNetworkError."""
        ...


class Tunnels:
    """The worker's end of every tunnel of the node."""

    def __init__(
        self,
        ledger: Ledger,
        ledger_threads: LedgerThreads,
        scope: OwnerScope,
        clock: Clock,
        settings: TunnelSettings,
        metadata: Metadata,
    ) -> None:
        self._ledger = ledger
        self._ledger_threads = ledger_threads
        self._scope = scope
        self._clock = clock
        self._settings = settings
        self._metadata = metadata
        self._threads = Threads(WORKERS, "tunnel")
        self._choosing = asyncio.Lock()
        self._untold: set[str] = set()  # sandboxes whose pods are not told of their VM; said once in the log
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # as long as somebody has it

    async def inspect(self, netns_path: str) -> PodNetwork:
        """What the pod's network is like. Raises InvalidInputError or StartFailedError."""
        if _is_own(netns_path):
            raise InvalidInputError(
                "network_namespace_path",
                f"network namespace path {netns_path!r} is the worker's own; it must be that of the pod, or empty",
            )
        try:
            return await self._threads.run(worker.inspect, netns_path, self._settings)
        except PodNetworkError as error:
            raise StartFailedError(str(error), reason="PodNetwork") from error

    @asynccontextmanager
    async def free_id(self, taken: set[int]) -> AsyncIterator[int]:
        """An id that is free in the ledger, outside `taken`, and on the node, until the block is left."""
        async with self._choosing:
            since = self._clock.now() - ID_REST
            scope = self._scope
            held = await self._ledger_threads.run(self._ledger.tunnel_ids, scope.cluster, scope.node, since)
            tunnel_id = FIRST_TUNNEL_ID
            while tunnel_id in held or tunnel_id in taken or not await self._usable(tunnel_id):
                tunnel_id += 1
            yield tunnel_id

    async def setup(self, sandbox: Sandbox, addresses: Sequence[str]) -> bool:
        """Build the tunnel to the VM with these addresses, or mend it; nothing for a sandbox that ends.

        False if the pod is not told of its VM yet, which needs another call. Raises PodNetworkError, and
        UnavailableError when the ledger cannot be used.
        """
        if sandbox.pod_network is None:
            return True
        network = from_json(sandbox.pod_network)
        async with self._alone(sandbox.id):
            if not await self._wanted(sandbox.id):
                return True
            await self._threads.run(tunnel.setup, sandbox.netns_path, addresses, network)
            try:
                await self._metadata.open(sandbox, network)
            except (PodNetworkError, OSError) as error:
                # The tunnel keeps those requests from everywhere else. A pod can do without; the next look tries again.
                if sandbox.id not in self._untold:
                    log.warning("the pod of sandbox %s gets no instance metadata: %s", sandbox.id, error)
                self._untold.add(sandbox.id)
                return False
            self._untold.discard(sandbox.id)
        return True

    async def teardown(self, sandbox: Sandbox) -> None:
        """Take away what `setup` made. Raises PodNetworkError; what could be done is done."""
        if sandbox.pod_network is None:
            return
        network = from_json(sandbox.pod_network)
        async with self._alone(sandbox.id):
            try:
                await self._metadata.close(sandbox, network)
            except (PodNetworkError, OSError) as error:  # its device goes with the tunnel's, which it is on top of
                log.warning("the metadata of sandbox %s goes with its tunnel: %s", sandbox.id, error)
            self._untold.discard(sandbox.id)
            await self._threads.run(tunnel.teardown, sandbox.netns_path, network)

    async def close(self) -> None:
        """End the threads."""
        await self._threads.close()

    def _alone(self, sandbox_id: str) -> asyncio.Lock:
        """A stop may come while a start builds the tunnel, or a look mends it."""
        return self._locks.setdefault(sandbox_id, asyncio.Lock())

    async def _wanted(self, sandbox_id: str) -> bool:
        """Who asks for a tunnel may have read the ledger before the end began, and come here after it."""
        now = await self._ledger_threads.run(self._ledger.sandbox, sandbox_id)
        return now is not None and now.state in (SandboxState.STARTING, SandboxState.RUNNING)

    async def _usable(self, tunnel_id: int) -> bool:
        try:
            return await self._threads.run(tunnel.usable, tunnel_id, self._settings.vxlan_port)
        except PodNetworkError as error:
            raise StartFailedError(str(error), reason="PodNetwork") from error


def _is_own(path: str) -> bool:
    try:
        return os.path.samefile(path, OWN_NAMESPACE)
    except OSError:
        return False  # it is gone; who reads it says so


def tunnel_failure(error: PodNetworkError) -> CallError:
    """What the caller of a start is told."""
    return StartFailedError(f"the pod's network cannot be carried to the pod VM: {error}", reason="PodNetwork")
