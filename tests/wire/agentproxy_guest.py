"""A pod VM as the agent proxy sees it: a real mutual-TLS server that speaks ttrpc, and the certificates for both sides.

Also starts `caa proxy` as the process it is. Used by the tests and the benchmark.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from caa.agentproxy.control import ProxyControl
from caa.agentproxy.health import serving_frame
from caa.ttrpc.frames import HEADER, REQUEST, Request, error_frame, response_frame
from tests.lab.streams import close_server

SERVER_NAME = "podvm-test-12345678"
# How long a test waits for what another process does. Only a failing test waits this long.
PATIENCE = 15.0


@dataclass(frozen=True)
class Keys:
    """PEM files: one CA for the VM's certificate, and a self-signed client certificate that the VM trusts."""

    directory: Path

    @property
    def ca(self) -> str:
        return str(self.directory / "ca.crt")

    @property
    def server(self) -> tuple[str, str]:
        return str(self.directory / "server.crt"), str(self.directory / "server.key")

    @property
    def client(self) -> tuple[str, str]:
        return str(self.directory / "client.crt"), str(self.directory / "client.key")


def make_keys(directory: Path, server_name: str = SERVER_NAME) -> Keys:
    """Make all three pairs."""
    directory.mkdir(parents=True, exist_ok=True)
    ca_key, ca = _pair("agent-protocol-forwarder", None, None, None)
    server_key, server = _pair(server_name, server_name, ca_key, ca)
    client_key, client = _pair("cloud-api-adaptor", None, None, None)
    for name, key, certificate in (
        ("ca", ca_key, ca),
        ("server", server_key, server),
        ("client", client_key, client),
    ):
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return Keys(directory)


def _pair(
    name: str, dns_name: str | None, issuer_key: ec.EllipticCurvePrivateKey | None, issuer: x509.Certificate | None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if issuer is None and name != "cloud-api-adaptor":
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if dns_name:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
    return key, builder.sign(issuer_key or key, hashes.SHA256())


def server_context(keys: Keys) -> ssl.SSLContext:
    """The VM's side: it takes the one client certificate only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*keys.server)
    context.load_verify_locations(cafile=keys.client[0])
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass
class GuestConnection:
    """One TLS connection to the guest, with every request that came on it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[tuple[int, Request]] = field(default_factory=list)
    begun: int = 0
    """Frames whose header came, with or without the rest."""

    def methods(self) -> list[str]:
        return [request.method for _, request in self.requests]

    def cut(self) -> None:
        """Reset the connection, as a dying VM or a network device does."""
        self.writer.transport.abort()


Respond = Callable[[GuestConnection, int, Request], Awaitable[bytes | None]]


async def echo(connection: GuestConnection, stream_id: int, request: Request) -> bytes | None:
    """Check serves; long polls never answer; all else gives its payload back."""
    if request.service == "grpc.Health":
        return serving_frame(stream_id)
    if request.method in ("WaitProcess", "GetOOMEvent", "CreateContainerNever"):
        return None
    if request.method == "Fail":
        return error_frame(stream_id, 5, "no such thing")
    return response_frame(stream_id, request.payload)


class Guest:
    """The TLS server. `respond` may be replaced; it returns the frame to answer with, or None for no answer."""

    def __init__(self, keys: Keys, address: str = "127.0.0.1") -> None:
        self.context = server_context(keys)
        self.address = address
        self.respond: Respond = echo
        self.connections: list[GuestConnection] = []  # all there ever were
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen, again on the same port after `stop`."""
        self._server = await asyncio.start_server(self._serve, self.address, self.port, ssl=self.context, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and reset those there are."""
        server, self._server = self._server, None
        if server is not None:
            await close_server(server)
        for connection in self.connections:
            connection.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def asked(self) -> list[str]:
        """The methods of all requests, on all connections, in order of arrival on each."""
        return [method for connection in self.connections for method in connection.methods()]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # its handshake was under way at the end
            writer.transport.abort()
            return
        connection = GuestConnection(reader, writer)
        self.connections.append(connection)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    length, stream_id, frame_type, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                    connection.begun += 1
                    data = await reader.readexactly(length)
                    assert frame_type == REQUEST
                    request = Request.decode(data)
                    connection.requests.append((stream_id, request))
                    answer = await self.respond(connection, stream_id, request)
                    if answer is not None:
                        writer.write(answer)
                        await writer.drain()
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


class ProxyProcess:
    """`caa proxy` as its own process."""

    def __init__(self, root: Path, redial_seconds: float) -> None:
        self.run_dir = root / "run"
        self.log_path = root / "proxy.log"
        code = (
            "import sys; from caa.agentproxy.main import run; "
            f"sys.exit(run({str(self.run_dir)!r}, {str(root / 'state')!r}, redial_seconds={redial_seconds!r}))"
        )
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-c", code], stderr=log)

    @property
    def control(self) -> ProxyControl:
        return ProxyControl(self.run_dir)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def rss_bytes(self) -> int:
        """What it holds in memory now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the proxy has ended")

    async def started(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                await self.control.version()
                return
            except ConnectionError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                await asyncio.sleep(0.02)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a short name, for a unix socket path has at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="ap", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@dataclass
class World:
    """A proxy process, a guest, and what a shim needs to reach one through the other."""

    root: Path
    keys: Keys
    guest: Guest
    proxy: ProxyProcess

    @property
    def control(self) -> ProxyControl:
        return self.proxy.control

    def socket_path(self, sandbox_id: str = "sb") -> Path:
        return self.root / "pods" / sandbox_id / "agent.ttrpc"

    async def open(self, sandbox_id: str = "sb", server_name: str = SERVER_NAME) -> Path:
        """Open a sandbox; returns the agent socket."""
        path = self.socket_path(sandbox_id)
        await self.control.open(sandbox_id, str(path), server_name, self.keys.ca, *self.keys.client)
        return path

    async def up(self, sandbox_id: str = "sb") -> Path:
        """Open a sandbox and connect it to the guest; returns the agent socket."""
        path = await self.open(sandbox_id)
        await self.control.connect(sandbox_id, ["127.0.0.1"], self.guest.port, PATIENCE)
        return path


@contextlib.asynccontextmanager
async def world(redial_seconds: float = 30.0) -> AsyncIterator[World]:
    """A guest that listens and a proxy that runs."""
    with short_directory() as root:
        keys = make_keys(root / "keys")
        guest = Guest(keys)
        await guest.start()
        w = World(root, keys, guest, ProxyProcess(root, redial_seconds))
        try:
            await w.proxy.started()
            yield w
            assert w.proxy.process.poll() is None, f"the proxy died: {w.proxy.log}"
            assert "Traceback" not in w.proxy.log, w.proxy.log
        finally:
            if w.proxy.process.poll() is None:
                w.proxy.stop()
            await guest.stop()


async def eventually(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Poll until the other process did it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if not isinstance(result, bool):
            result = await result
        if result:
            return
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        await asyncio.sleep(0.02)


def open_files(pid: int) -> int:
    """How many descriptors a process holds."""
    return len(os.listdir(f"/proc/{pid}/fd"))


async def _main(directory: str, address: str) -> None:
    guest = Guest(Keys(Path(directory)), address)
    await guest.start()
    print(guest.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":  # a guest in a network namespace of its own: KEYS ADDRESS, prints its port
    asyncio.run(_main(*sys.argv[1:]))
