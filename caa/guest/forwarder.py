"""The agent protocol forwarder: TLS port 15150 to the agent's unix socket.

The port opens when the agent accepts connections, not before: to the worker an open port means a pod VM that is
ready. Each worker connection gets an agent connection of its own.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from caa.guest.apf import CONFIG, IMAGE_CERTIFICATES, read_identity, read_metadata, read_pod_network, server_context
from caa.guest.log import log
from caa.guest.network import PodNetwork
from caa.guest.relay import relay
from caa.guest.rewrite import POD_NAMESPACE, Work, rewrite_request

if TYPE_CHECKING:
    from caa.guest.volumes import CloudVolumes

AGENT_SOCKET = Path("/run/kata-containers/agent.sock")
ADDRESS = ("0.0.0.0", 15150)  # noqa: S104  the worker comes from outside; who may come in is decided by its certificate

# The incumbent's patience with the agent. systemd starts the forwarder again after it.
_AGENT_SECONDS = 150.0
_AGENT_POLL_SECONDS = 0.02
# A worker needs one round trip or two; a stranger must not hold a thread for longer.
_HANDSHAKE_SECONDS = 10.0
# A worker that waits for the port comes within a second; without one the system must come up all the same.
_STARTED_SECONDS = 2.0
# The proxy holds one connection per pod VM and one more while it re-dials; select() allows about 500.
_MAX_CONNECTIONS = 64


class AgentError(Exception):
    """The agent did not come up."""


def connect_agent(path: Path, patience: float) -> socket.socket:
    """A connection to the agent's socket, tried again until `patience` seconds are over. Raises AgentError."""
    deadline = time.monotonic() + patience
    while True:
        agent = socket.socket(socket.AF_UNIX)
        try:
            agent.connect(str(path))
        except OSError as error:
            agent.close()
            if time.monotonic() >= deadline:
                raise AgentError(f"no agent at {path} after {patience:.0f} s: {error.strerror}") from None
            time.sleep(_AGENT_POLL_SECONDS)
        else:
            return agent


class Forwarder:
    """Listens, and runs one thread per connection. All arguments are for tests; the pod VM uses the defaults."""

    def __init__(
        self,
        config: Path = CONFIG,
        certificates: Path = IMAGE_CERTIFICATES,
        agent_socket: Path = AGENT_SOCKET,
        address: tuple[str, int] = ADDRESS,
        pod_namespace: Path = POD_NAMESPACE,
        agent_seconds: float = _AGENT_SECONDS,
        volumes: CloudVolumes | None = None,
    ) -> None:
        self._tls = server_context(read_identity(config, certificates))
        self._agent_socket = agent_socket
        self._address = address
        self._pod_namespace = pod_namespace
        self._agent_seconds = agent_seconds
        self._volumes = volumes
        self._network = PodNetwork(read_pod_network(config), read_metadata(config))
        self._met = threading.Event()  # a worker has been let in
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def run(self) -> NoReturn:
        """Wait for the agent, listen, and serve for ever. Raises AgentError or OSError."""
        connect_agent(self._agent_socket, self._agent_seconds).close()
        listener = socket.create_server(self._address, backlog=16)
        log(f"listening on {':'.join(map(str, listener.getsockname()))}")
        threading.Thread(target=self._tell_started, daemon=True).start()
        while True:
            try:
                worker, peer = listener.accept()
            except OSError as error:  # the caller left before we came to it, or we are short of descriptors
                log(f"cannot accept a connection: {error.strerror}")
                time.sleep(_AGENT_POLL_SECONDS)
                continue
            if not self._slots.acquire(blocking=False):
                log(f"{peer[0]}: turned away, {_MAX_CONNECTIONS} connections are open")
                worker.close()
                continue
            threading.Thread(target=self._serve, args=(worker, peer[0]), daemon=True).start()

    def _tell_started(self) -> None:
        # The rest of the system starts on this, and on one slow CPU would take the handshake its time.
        self._met.wait(_STARTED_SECONDS)
        # The pod's network first, for its calls wait for it; the system's other services not for long.
        building = threading.Thread(target=self._network.build, daemon=True)
        building.start()
        building.join(_STARTED_SECONDS)
        notify("READY=1")

    def _serve(self, connection: socket.socket, peer: str) -> None:
        try:
            with connection:
                connection.settimeout(_HANDSHAKE_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A worker that vanished without a word frees its connection, and the agent its calls, in a minute.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
                with self._tls.wrap_socket(connection, server_side=True) as worker:
                    self._forward(worker, peer)
        except (OSError, AgentError) as error:  # every TLS error is an OSError
            log(f"{peer}: {_reason(error)}")
        finally:
            self._slots.release()

    def _forward(self, worker: ssl.SSLSocket, peer: str) -> None:
        agent = connect_agent(self._agent_socket, self._agent_seconds)
        log(f"{peer}: connected")
        self._met.set()

        def change(data: bytes) -> bytes | Work:
            return rewrite_request(data, self._pod_namespace, self._volumes)

        relay(worker, agent, lambda data: self._network.before(data, change))
        log(f"{peer}: closed")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"refused, its certificate is not the one expected: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"refused, no mutual TLS: {error.reason or 'connection ended'}"
    return str(error)


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify protocol: one datagram to the socket it named)."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect("\0" + name[1:] if name.startswith("@") else name)
            sock.sendall(state.encode())
        except OSError as error:
            log(f"cannot notify systemd: {error.strerror}")
