"""What every use case on this node works with, handed around as one thing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from caa.agentproxy.control import ProxyControl
from caa.callers import caller
from caa.clock import Clock
from caa.cloud import Cloud
from caa.errors import CallError
from caa.guestconfig import TlsProfile
from caa.kubernetes.port import NoPullSecrets, NoReports, PodReports, PullSecrets
from caa.ledger import Ledger
from caa.ledgerthreads import LedgerThreads
from caa.logs import about
from caa.pki import NodeKeys
from caa.sandbox import Event
from caa.settings import Settings
from caa.sizing import Policy
from caa.tunnels import Tunnels
from providers.base import OwnerScope, Provider

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


@dataclass(slots=True)
class Current:
    """The settings that hold now; exchanged as a whole when the configuration changes."""

    settings: Settings


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
    current: Current
    prices: Mapping[tuple[str, str], float] = field(default_factory=dict)  # see caa.sizing.Policy
    built_image: Callable[[], str] = lambda: ""
    """The image that was built here and is in use; "" where the configuration names images."""
    image_refusal: Callable[[], CallError | None] = lambda: None
    """Why no sandbox can start for want of a pod VM image, if that is so."""
    reports: PodReports = field(default_factory=NoReports)
    """Who tells the owners of pods what is recorded here."""
    pull_secrets: PullSecrets = field(default_factory=NoPullSecrets)
    """Who knows what pods pull their images with."""
    watchers: list[Callable[[Event], None]] = field(default_factory=list)
    """Told of every event once it is on disk: metrics and traces. They must not raise."""

    @property
    def proxy_timeout(self) -> float:
        """Seconds until a new pod VM's agent must have answered."""
        return self.current.settings.proxy_timeout

    @property
    def initdata(self) -> str:
        """base64(gzip(toml)) for pods that bring none; "" is none."""
        return self.current.settings.initdata

    @property
    def scratch_space(self) -> bool:
        """Whether pod VMs are told to use an encrypted scratch space."""
        return self.current.settings.enable_scratch_space

    @property
    def limit(self) -> int:
        """How many pod VMs this node may have at once; below 0 there is no limit."""
        return self.current.settings.limit_per_node

    @property
    def policy(self) -> Policy:
        """What the configuration says of every pod's size and image."""
        return Policy(self.cloud.default_type, self.cloud.default_image, self.current.settings.images, self.prices)

    @contextlib.contextmanager
    def unchanging(self) -> Iterator[Node]:
        """This node as it is configured now, whole, whatever is reconfigured meanwhile."""
        with self.cloud.unchanging() as cloud:
            yield replace(self, cloud=cloud, current=Current(self.current.settings))

    def reconfigure(self, settings: Settings, provider: Provider) -> None:
        """Exchange both at once: nobody sees the one without the other."""
        self.cloud.exchange(provider)
        self.current.settings = settings

    async def db(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A ledger call in a thread. Never abandoned half-way: a cancelled caller knows it was written or not.

        Raises caa.errors.UnavailableError when the ledger cannot be used.
        """
        result = await self.ledger_threads.run(call, *args, **kwargs)
        if isinstance(event := kwargs.get("event"), Event):
            self._say(event)
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
        """An event of now, with who asked. A `sandbox_id` of "" is this node; what is "" in `data` is left out."""
        told = {name: value for name, value in data.items() if value != ""} | {"by": caller()}
        return Event(sandbox_id, self.clock.now(), kind, message, attempt, told, self.scope.cluster, self.scope.node)

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
        self._say(event)

    def _say(self, event: Event) -> None:
        """What the trail holds now, the log says too, and the pod's owner may know."""
        with about(event.sandbox_id):
            log.info("%s: %s", event.kind, event.message)
        self.reports.changed(event.sandbox_id)
        for watcher in self.watchers:
            watcher(event)
