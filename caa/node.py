"""What every use case on this node works with, handed around as one thing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from caa.agentproxy.control import ProxyControl
from caa.clock import Clock
from caa.cloud import Cloud
from caa.guestconfig import TlsProfile
from caa.ledger import Ledger
from caa.ledgerthreads import LedgerThreads
from caa.logs import about
from caa.pki import NodeKeys
from caa.sandbox import Event
from caa.sizing import Policy
from caa.tunnels import Tunnels
from providers.base import OwnerScope

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AgentTls:
    """Whose certificates the agent link uses. `keys` is None when the administrator brings them."""

    keys: NodeKeys | None
    ca_file: str
    cert_file: str
    key_file: str
    profile: TlsProfile


@dataclass(frozen=True, slots=True)
class Node:
    """This worker node: its identity, its ledger, its cloud, its proxy."""

    scope: OwnerScope
    ledger: Ledger
    ledger_threads: LedgerThreads
    cloud: Cloud
    proxy: ProxyControl
    tunnels: Tunnels
    clock: Clock
    tls: AgentTls
    pods_dir: Path
    forwarder_port: int
    proxy_timeout: float  # seconds
    initdata: str = ""  # base64(gzip(toml)) for pods that bring none
    scratch_space: bool = False
    images: tuple[str, ...] = ()  # that pods may name
    prices: Mapping[tuple[str, str], float] = field(default_factory=dict)  # see caa.sizing.Policy
    limit: int = -1  # of pod VMs at once; below 0 there is none

    @property
    def policy(self) -> Policy:
        """What the configuration says of every pod's size and image."""
        return Policy(self.cloud.default_type, self.cloud.default_image, self.images, self.prices)

    async def db(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A ledger call in a thread. Never abandoned half-way: a cancelled caller knows it was written or not.

        Raises caa.errors.UnavailableError when the ledger cannot be used.
        """
        result = await self.ledger_threads.run(call, *args, **kwargs)
        if isinstance(event := kwargs.get("event"), Event):
            _say(event)
        return result

    def event(
        self,
        sandbox_id: str,
        kind: str,
        message: str,
        *,
        attempt: int | None = None,
        **data: str | int | float | bool,
    ) -> Event:
        """An event of now."""
        return Event(sandbox_id, self.clock.now(), kind, message, attempt, data)

    async def record(
        self,
        sandbox_id: str,
        kind: str,
        message: str,
        *,
        attempt: int | None = None,
        **data: str | int | float | bool,
    ) -> None:
        """Write an event of now."""
        event = self.event(sandbox_id, kind, message, attempt=attempt, **data)
        await self.db(self.ledger.add_event, event)
        _say(event)


def _say(event: Event) -> None:
    """What the trail holds now, the log says too."""
    with about(event.sandbox_id):
        log.info("%s: %s", event.kind, event.message)
