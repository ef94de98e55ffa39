"""The control protocol between `caa serve` and `caa proxy`: ttrpc service caa.AgentProxy on <run dir>/proxy.sock."""

from __future__ import annotations

from caa.ttrpc.protobuf import Message, field

SERVICE = "caa.AgentProxy"
SOCKET_NAME = "proxy.sock"


class CloudVolume(Message):
    """A disk that was attached to the pod VM for a volume of the pod. `path` is the source of its mounts here."""

    path: str = field(1)
    disk_id: str = field(2)
    fs_type: str = field(3)
    encrypt_type: str = field(4)
    key_id: str = field(5)


class OpenRequest(Message):
    """Open: listen for the shim of a sandbox. The key files are read now.

    `volumes` are those of the pod `pod_uid`, in the order in which their disks were attached.
    """

    sandbox_id: str = field(1)
    socket_path: str = field(2)
    server_name: str = field(3)
    ca_file: str = field(4)
    cert_file: str = field(5)
    key_file: str = field(6)
    tls_min_version: str = field(7)
    tls_ciphers: list[str] = field(8)
    pod_uid: str = field(9)
    volumes: list[CloudVolume] = field(10)


class ConnectRequest(Message):
    """Connect: dial the sandbox's pod VM until its agent answers."""

    sandbox_id: str = field(1)
    addresses: list[str] = field(2)
    port: int = field(3)
    timeout_milliseconds: int = field(4)


class ConnectResponse(Message):
    """Times since the call arrived; 0 for what had happened before."""

    address: str = field(1)
    tcp_microseconds: int = field(2)
    tls_microseconds: int = field(3)
    agent_microseconds: int = field(4)


class CloseRequest(Message):
    """Close: end everything of a sandbox. Unknown is success."""

    sandbox_id: str = field(1)


class SandboxStatus(Message):
    """One open sandbox."""

    id: str = field(1)
    shim_connections: int = field(2)
    agent_seen: bool = field(3)
    idle_milliseconds: int = field(4)
    connected: bool = field(5)
    address: str = field(6)


class ListResponse(Message):
    """List: all open sandboxes."""

    sandboxes: list[SandboxStatus] = field(1)


class VersionResponse(Message):
    """Version: of the running process, which may be older than its caller."""

    version: str = field(1)
    pid: int = field(2)


class Empty(Message):
    """No fields."""
