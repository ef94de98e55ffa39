"""The emulated Azure as a test sees it: a process to start, keys that lead there, and control methods."""

from __future__ import annotations

import base64
import contextlib
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.clouds.azure.names import name_of
from tests.clouds.faultproxy import FaultProxy, make_tls
from tests.clouds.process import ServerProcess

TENANT = "99999999-2222-3333-4444-555555555555"


@dataclass(frozen=True)
class Seed:
    """What a launch names."""

    subscription: str
    group: str
    region: str
    subnet: str
    nsg: str
    images: dict[str, str]  # x64 for confidential VMs, plain for others, arm64


class AzureEmulator:
    """Context manager: the process runs inside it. Starts without limits, delays, or anything seeded."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> AzureEmulator:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="azure-")))
            self._tls, self.ca_file = make_tls(directory)
            arguments = ["--pair", str(directory / "server.pem")]
            self.server = stack.enter_context(ServerProcess("tests.clouds.azure", arguments))
            self.port, self.control_port = (int(port) for port in self.server.ready_line.split())
            self._http = stack.enter_context(httpx.Client(base_url=self.control_url, timeout=60, trust_env=False))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def control_url(self) -> str:
        """Where guests ask."""
        return f"http://127.0.0.1:{self.control_port}"

    def proxy(self) -> FaultProxy:
        """A way to the cloud that may be broken, and knows requests by their names."""
        trust = ssl.create_default_context(cafile=str(self.ca_file))
        return FaultProxy(self.url, self._tls, trust, action=name_of)

    def environ(self, url: str = "") -> dict[str, str]:
        """What leads a provider here, or by `url` (a proxy), and nowhere else. Tokens always come from here."""
        return {
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": "app",
            "AZURE_CLIENT_SECRET": "not-checked",
            "AZURE_AUTHORITY_HOST": self.url,
            "AZURE_RESOURCE_MANAGER": url or self.url,
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
        }

    # Control verbs

    def seed(self) -> Seed:
        """A network in 127.50.0.0/20, a security group and images."""
        return Seed(**self._do("seed"))

    def stop_clock(self) -> None:
        """From now on only `advance` lets time pass."""
        self._do("clock", running=False)

    def run_clock(self) -> None:
        self._do("clock", running=True)

    def advance(self, seconds: float) -> None:
        self._do("advance", seconds=seconds)

    def delays(
        self, pending: float = 0.0, boot: float = 0.0, shutting_down: float = 0.0, guest_ready: float = 0.0
    ) -> None:
        """Seconds from the PUT to a VM that runs, from there to an answering guest, from DELETE to gone, and from the
        answering guest to the end of ARM's operation."""
        self._do("delays", pending=pending, boot=boot, shutting_down=shutting_down, guest_ready=guest_ready)

    def capacity(self, *rules: dict[str, Any]) -> None:
        """Rules of instance_type, zone, market (each "*" unless given) and remaining (0). None: endless capacity."""
        self._do("capacity", rules=list(rules))

    def failing(self, *rules: dict[str, Any]) -> None:
        """As `capacity`; but such VMs are accepted, and their operation fails."""
        self._do("failing", rules=list(rules))

    def sizes(self, *sizes: dict[str, Any]) -> None:
        """More VM sizes: name, family, cpus, memory (GiB)."""
        self._do("sizes", sizes=list(sizes))

    def keeping(self, *kinds: str) -> None:
        """From now on these stay when their VM goes, whatever was asked: interfaces, disks, public_ips."""
        self._do("keeping", kinds=list(kinds))

    def quota(self, vcpus: dict[str, int] | None = None) -> None:
        """vCPUs by family, cores or lowPriorityCores; what is not named has no quota."""
        self._do("quota", vcpus=vcpus or {})

    def barred(self, *rules: dict[str, Any]) -> None:
        """Restrictions of sizes: size, zones (or none for the region), reason."""
        self._do("barred", rules=list(rules))

    def limits(self, limits: dict[str, tuple[float, float]], retry_after: int = 1) -> None:
        """Request name -> (burst, requests a second)."""
        self._do("limits", limits=limits, retry_after=retry_after)

    def staleness(self, calls: int = 0, seconds: float = 0.0, terminate: bool = False) -> None:
        """How long lists do not know a new VM; with `terminate` DELETE does not either."""
        self._do("staleness", calls=calls, seconds=seconds, terminate=terminate)

    def counters(self) -> dict[str, Any]:
        """calls and errors by request, vms, interfaces, disks, public_ips, made (name -> vmIds)."""
        return dict(self._do("counters"))

    def overview(self) -> dict[str, Any]:
        """vms; made (name -> vmIds); ever: how many were made of each kind; unused: name and tags, by kind, of what
        came with VMs that are gone."""
        return dict(self._do("overview"))

    def user_data(self, instance_id: str) -> bytes:
        return base64.b64decode(self._do("user_data", instance_id=instance_id)["user_data"])

    def body(self, name: str) -> dict[str, Any]:
        """Of the PUT that made a VM."""
        return dict(self._do("body", name=name))

    def fail(self, name: str, code: str, message: str = "", *, running: bool = False) -> None:
        """Let a VM's operation fail; `running`: the VM runs all the same."""
        self._do("fail", name=name, code=code, message=message, running=running)

    def reset(self) -> None:
        self._do("reset")

    def _do(self, verb: str, **arguments: Any) -> Any:
        response = self._http.post(f"/_control/{verb}", json=arguments)
        assert response.is_success, f"{verb}: {response.text}"
        return response.json() if response.content else None
