"""The control plane's side of the agent proxy: one method for each verb of `caa proxy`.

Each call has a connection of its own, so neither process notices when the other restarts between two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from caa.agentproxy import messages
from caa.ttrpc.client import call_once
from caa.ttrpc.protobuf import Message

# All verbs but connect only touch memory and a socket file.
_CALL_SECONDS = 10.0
# The proxy ends a connect itself when its time is up; this much later it counts as hanging.
_CONNECT_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Connected:
    """The pod VM's agent answered. Seconds since the call, 0.0 for what had happened before it."""

    address: str
    tcp_seconds: float
    tls_seconds: float
    agent_seconds: float


@dataclass(frozen=True, slots=True)
class ProxiedSandbox:
    """What the proxy knows of one sandbox."""

    id: str
    shim_connections: int  # now
    agent_seen: bool  # a shim was connected at some time
    idle_seconds: float  # since the last shim connection ended (0.0 while there is one), or since open
    connected: bool  # a link to the pod VM is up
    address: str  # of the pod VM; "" before the first connect


@dataclass(frozen=True, slots=True)
class ProxyVersion:
    """Of the running proxy."""

    version: str
    pid: int


class ProxyControl:
    """Calls the proxy of `run_dir`.

    All methods raise ConnectionError when no proxy runs or it ended during the call, TimeoutError when it hangs, and
    caa.ttrpc.frames.StatusError with the proxy's refusal: INVALID_ARGUMENT, ALREADY_EXISTS, NOT_FOUND,
    FAILED_PRECONDITION (TLS that cannot work), DEADLINE_EXCEEDED, CANCELLED (closed meanwhile).
    """

    def __init__(self, run_dir: str | Path) -> None:
        self._path = Path(run_dir) / messages.SOCKET_NAME

    async def open(
        self,
        sandbox_id: str,
        socket_path: str,
        server_name: str,
        ca_file: str,
        cert_file: str,
        key_file: str,
        tls_min_version: str = "",
        tls_ciphers: Sequence[str] = (),
        pod_uid: str = "",
        volumes: Sequence[messages.CloudVolume] = (),
    ) -> None:
        """Listen on `socket_path` for the shim. Again with the same arguments: nothing; with others: ALREADY_EXISTS.

        `volumes` are those of the pod `pod_uid` whose disks the pod VM was launched with, in that order.
        """
        request = messages.OpenRequest(
            sandbox_id=sandbox_id,
            socket_path=socket_path,
            server_name=server_name,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            tls_min_version=tls_min_version,
            tls_ciphers=list(tls_ciphers),
            pod_uid=pod_uid,
            volumes=list(volumes),
        )
        await self._call("Open", request)

    async def connect(self, sandbox_id: str, addresses: Sequence[str], port: int, timeout_seconds: float) -> Connected:
        """Dial the pod VM until its agent answers. A second caller joins the first; the newest addresses count.

        Being cancelled leaves the proxy dialling until its time is up or `close`.
        """
        request = messages.ConnectRequest(
            sandbox_id=sandbox_id,
            addresses=list(addresses),
            port=port,
            timeout_milliseconds=int(timeout_seconds * 1000),
        )
        payload = await self._call("Connect", request, timeout_seconds + _CONNECT_MARGIN_SECONDS)
        answer = messages.ConnectResponse.decode(payload)
        return Connected(
            address=answer.address,
            tcp_seconds=answer.tcp_microseconds / 1e6,
            tls_seconds=answer.tls_microseconds / 1e6,
            agent_seconds=answer.agent_microseconds / 1e6,
        )

    async def close(self, sandbox_id: str) -> None:
        """End the sandbox's connections and remove its socket. Unknown is success."""
        await self._call("Close", messages.CloseRequest(sandbox_id=sandbox_id))

    async def list(self) -> list[ProxiedSandbox]:
        """All open sandboxes."""
        answer = messages.ListResponse.decode(await self._call("List", messages.Empty()))
        return [
            ProxiedSandbox(
                id=one.id,
                shim_connections=one.shim_connections,
                agent_seen=one.agent_seen,
                idle_seconds=one.idle_milliseconds / 1e3,
                connected=one.connected,
                address=one.address,
            )
            for one in answer.sandboxes
        ]

    async def version(self) -> ProxyVersion:
        """Which proxy runs. Doubles as the question whether one does."""
        answer = messages.VersionResponse.decode(await self._call("Version", messages.Empty()))
        return ProxyVersion(answer.version, answer.pid)

    async def shutdown(self) -> None:
        """Let the proxy end after its answer. Every pod of the node loses its agent connection."""
        await self._call("Shutdown", messages.Empty())

    async def _call(self, method: str, request: Message, timeout: float = _CALL_SECONDS) -> bytes:
        return await call_once(self._path, messages.SERVICE, method, request.encode(), timeout)
