"""Ends the VMs of nodes that are gone, and lets go of their PeerPods. By the leader, once a minute."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from caa.clock import Clock
from caa.controller.api import ControllerApi
from caa.controller.nodes import LABEL
from caa.controller.sharedledger import SharedLedger, close_node
from caa.controller.sweep import GRACE, Nodes, batches, due, orphans, remembered, restored, stored
from caa.kubernetes.answers import AwayError, RefusedError
from caa.ledger import LedgerError, StaleWriteError
from providers.base import ConfigError, MissingError, OwnerScope, Provider, ProviderError

log = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
# The ConfigMap that nodes are remembered in, so that grace times outlive this process.
RECORD = "caa-controller-nodes"


class Sweeper:
    """`cloud` gives the cluster's id and a provider for one pass; None where it is not configured."""

    def __init__(
        self,
        api: ControllerApi,
        cloud: Callable[[], tuple[str, Provider] | None],
        ledger: SharedLedger,
        clock: Clock,
        leads: Callable[[], bool] = lambda: True,
        grace: timedelta = GRACE,
    ) -> None:
        self._api = api
        self._cloud = cloud
        self._ledger = ledger
        self._clock = clock
        self._leads = leads
        self._grace = grace
        self._first_seen: dict[str, datetime] = {}
        self._complained = ""

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.sweep()
                self._complained = ""
            except (AwayError, RefusedError, ConfigError, ProviderError, LedgerError, StaleWriteError) as error:
                if str(error) != self._complained:
                    self._complained = str(error)
                    log.warning("VMs of nodes that are gone are looked for again later: %s", error)
            await self._clock.sleep(SWEEP_SECONDS)

    async def sweep(self) -> list[str]:
        """One pass; returns the instances whose end was asked for. Raises what its parts raise."""
        there = {
            one["metadata"]["name"]: LABEL in (one["metadata"].get("labels") or {}) for one in await self._api.nodes()
        }
        record = await self._api.config_map(RECORD)
        before = restored((record or {}).get("data") or {})
        nodes = remembered(before, there, self._clock.now())
        record = await self._remember(record, nodes)
        gone = due(nodes, self._clock.now(), self._grace)
        if not gone:
            return []
        ended: list[str] = []
        with self._opened() as opened:
            if opened is None:
                return []
            cluster, provider = opened
            for name in gone:
                ids, rest = await self._end(provider, OwnerScope(cluster, name))
                ended += ids
                if not rest:
                    await asyncio.to_thread(self._close, provider, OwnerScope(cluster, name))
                    await self._let_go(cluster, name)
                    del nodes[name]
        await self._remember(record, nodes)
        return ended

    @contextmanager
    def _opened(self) -> Iterator[tuple[str, Provider] | None]:
        cloud = self._cloud()
        try:
            yield cloud
        finally:
            if cloud is not None:
                cloud[1].close()

    async def _end(self, provider: Provider, scope: OwnerScope) -> tuple[list[str], bool]:
        """What was ended, and whether there was anything at all."""
        found = await asyncio.to_thread(provider.instances, scope)
        now = self._clock.now()
        for one in found:
            self._first_seen.setdefault(one.id, now)
        ids = orphans(found, scope, self._first_seen, now, self._grace)
        for batch in batches(ids, provider.terminate_batch):
            if not self._leads():
                raise AwayError("another replica may lead now")
            log.warning("node %s is gone: its VMs %s are ended", scope.node, ", ".join(batch))
            refused = await asyncio.to_thread(provider.terminate, batch)
            for name, error in refused.items():
                if not isinstance(error, MissingError):
                    log.error("VM %s of node %s, which is gone, could not be ended: %s", name, scope.node, error)
        return ids, bool(found)

    def _close(self, provider: Provider, scope: OwnerScope) -> None:
        """What the ledger has of the node is over. While it is not, images that its sandboxes had count as used."""
        shared = self._ledger.get()
        if shared is not None and (ended := close_node(shared[1], provider, scope, self._clock.now())):
            log.warning("node %s is gone: its sandboxes %s are over", scope.node, ", ".join(ended))

    async def _let_go(self, cluster: str, node: str) -> None:
        """Without this the PeerPods of a node that is gone keep their namespaces for ever."""
        for namespace, name in await self._api.peer_pods_of(cluster, node):
            await self._api.release_peer_pod(namespace, name)

    async def _remember(self, record: dict[str, Any] | None, nodes: Nodes) -> dict[str, Any]:
        """Write it down, if it is not what is written there."""
        if record is not None and (record.get("data") or {}) == stored(nodes):
            return record
        body = record or {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": RECORD, "namespace": self._api.namespace},
        }
        return await self._api.write_config_map({**body, "data": stored(nodes)})
