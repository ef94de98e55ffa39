"""The metadata service of this node: which pod asks, what is known of its VM, and for how long that holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from caa.clock import Clock
from caa.errors import ConflictError, UnavailableError
from caa.ledger import Ledger
from caa.ledgerthreads import LedgerThreads
from caa.metadata.aws import Aws
from caa.metadata.azure import Azure
from caa.metadata.descriptions import Describe, Descriptions
from caa.metadata.facts import Answer, Dialect, DialectName, Facts, Policy, Request, text
from caa.metadata.ibmcloud import IbmCloud
from caa.metadata.keys import Mode
from caa.metadata.server import PodServer
from caa.metadata.tokens import Tokens
from caa.podnetwork.config import PodNetwork
from caa.podnetwork.metadatadoor import MetadataDoor, pod_addresses
from caa.sandbox import FINAL_STATES, AttemptState, Sandbox
from caa.threads import Threads

log = logging.getLogger(__name__)

# A door takes some 10 ms, nearly all of it the kernel's, which does one thing at a time.
WORKERS = 2
# How long a pod's answers are good without a look at the ledger and the descriptions; less while there is none.
GOOD_SECONDS, INCOMPLETE_SECONDS = 60.0, 5.0

_REFUSED = {
    "off": text(403, "instance metadata is turned off for pods (CAA_METADATA_MODE)"),
    "vm": text(403, "instance metadata is the pod VM's to tell (CAA_METADATA_MODE), and this VM passes nothing on"),
}
_GONE = text(404, "there is no pod VM to tell about")
_UNAVAILABLE = text(503, "the service cannot look this up now")


class MetadataSettings(Protocol):
    """The keys, as they are now: `caa.settings.Settings`."""

    @property
    def metadata_mode(self) -> Mode:
        """Who answers pods."""
        ...

    @property
    def metadata_dialect(self) -> str:
        """How; "" for the cloud's own way."""
        ...

    @property
    def metadata_allow(self) -> tuple[str, ...]:
        """What pods may have besides."""
        ...

    @property
    def metadata_hop_limit(self) -> int:
        """How far a token may travel."""
        ...

    @property
    def cloud_provider(self) -> str:
        """Whose VMs they are."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pod sees."""

    mode: Mode
    dialect: DialectName
    served: bool
    """Whether the pod's requests are answered by this service now."""
    document: Mapping[str, Any]
    """What it reads there, by path; empty unless the mode is `pod`."""


class MetadataService:
    """Answers the pods of this node."""

    def __init__(
        self,
        ledger: Ledger,
        ledger_threads: LedgerThreads,
        describe: Describe,
        settings: Callable[[], MetadataSettings],
        tokens: Tokens,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._ledger_threads = ledger_threads
        self._descriptions = Descriptions(describe, clock)
        self._tokens = tokens
        self.settings = settings
        self.clock = clock
        self._threads = Threads(WORKERS, "metadata")
        self._door: MetadataDoor | None = None
        self._making = asyncio.Lock()
        self._servers: dict[str, PodServer] = {}

    async def open(self, sandbox: Sandbox, network: PodNetwork) -> None:
        """Serve the sandbox's pod; what is right is left alone. The tunnel must be there. Raises PodNetworkError."""
        async with self._making:
            if self._door is None:
                self._door = await self._threads.run(MetadataDoor)
        known = self._servers.get(sandbox.id)
        if known is not None and await self._threads.run(self._door.present, network):
            return
        if known is not None:
            known.close()
            del self._servers[sandbox.id]  # if the next lines fail, another call begins anew
        listeners = await self._threads.run(self._door.open, sandbox.netns_path, network)
        server = PodServer(_Site(self, sandbox.id), pod_addresses(network), self.clock.monotonic)
        self._servers[sandbox.id] = server
        await server.start(listeners)

    async def close(self, sandbox: Sandbox, network: PodNetwork) -> None:
        """Serve the pod no more. Raises PodNetworkError."""
        known = self._servers.pop(sandbox.id, None)
        if known is not None:
            known.close()
        if self._door is not None:
            await self._threads.run(self._door.remove, network)

    async def shutdown(self) -> None:
        """End everything. Until the next service the pods' requests come to a dead end."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self._descriptions.close()
        await self._threads.close()
        if self._door is not None:
            self._door.close()

    async def seen(self, sandbox: Sandbox) -> Seen:
        """What the sandbox's pod sees. Raises ConflictError while it has no VM."""
        facts = await self.facts(sandbox.id)
        if facts is None:
            raise ConflictError(f"sandbox {sandbox.id} is {sandbox.state} and has no instance to tell about")
        dialect, mode = self.dialect(facts), self.settings().metadata_mode
        return Seen(
            mode=mode,
            dialect=dialect.name,
            served=mode == "pod" and sandbox.id in self._servers,
            document=dialect.document() if mode == "pod" else {},
        )

    async def facts(self, sandbox_id: str) -> Facts | None:
        """What is known of the sandbox's VM; None while it has none, or no more. Raises UnavailableError."""
        sandbox = await self._ledger_threads.run(self._ledger.sandbox, sandbox_id)
        attempts = await self._ledger_threads.run(self._ledger.attempts, sandbox_id)
        attempt = next((one for one in reversed(attempts) if one.state is AttemptState.ACCEPTED), None)
        if sandbox is None or sandbox.state in FINAL_STATES or attempt is None:
            return None
        return Facts(sandbox, attempt, await self._descriptions.get(attempt.instance_id))

    def dialect(self, facts: Facts) -> Dialect:
        """As the settings have it now. libvirt has no service of its own, and most tools speak EC2's."""
        settings = self.settings()
        policy = Policy(frozenset(settings.metadata_allow), settings.metadata_hop_limit)
        match settings.metadata_dialect or settings.cloud_provider:
            case "azure":
                return Azure(facts, policy)
            case "ibmcloud":
                return IbmCloud(facts, policy, self._tokens)
            case _:
                return Aws(facts, policy, self._tokens)


class _Site:
    """One pod's answers, kept for a while. Old ones serve until the new ones are there."""

    def __init__(self, service: MetadataService, sandbox_id: str) -> None:
        self._service = service
        self._sandbox_id = sandbox_id
        self._answering: Callable[[Request], Answer] | None = None
        self._good_until = 0.0
        self._made_with: MetadataSettings | None = None
        self._finding_out: asyncio.Task[Callable[[Request], Answer]] | None = None

    def ready(self) -> Callable[[Request], Answer] | None:
        """What answers at once; None while that must be found out."""
        settings = self._service.settings()
        refused = _REFUSED.get(settings.metadata_mode)
        if refused is not None:
            return lambda _: refused
        if self._made_with is not settings:
            self._answering = None
        elif self._good_until <= self._service.clock.monotonic():
            self._begin()
        return self._answering

    async def found_out(self) -> Callable[[Request], Answer]:
        """The same, when it is known."""
        return await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[Callable[[Request], Answer]]:
        if self._finding_out is None or self._finding_out.done():
            self._finding_out = asyncio.create_task(self._find_out())
        return self._finding_out

    async def _find_out(self) -> Callable[[Request], Answer]:
        service = self._service
        settings = service.settings()
        try:
            facts = await service.facts(self._sandbox_id)
            if facts is None:
                return lambda _: _GONE
            dialect = service.dialect(facts)
        except UnavailableError as error:
            log.warning("a pod's metadata cannot be looked up: %s", error)
            return self._answering or (lambda _: _UNAVAILABLE)
        except Exception:  # such as a description of a shape that no cloud has
            log.exception("a pod's metadata cannot be told")
            return lambda _: _UNAVAILABLE
        seconds = GOOD_SECONDS if facts.description else INCOMPLETE_SECONDS
        self._made_with, self._good_until = settings, service.clock.monotonic() + seconds
        self._answering = lambda request: dialect.answer(request, service.clock.now().timestamp())
        return self._answering
