"""Pod VM images on the emulated Azure: its parts, a way to it that may be broken, and the configuration for it."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.clouds.faultproxy import FaultProxy, make_tls
from tests.clouds.process import ServerProcess

SUBSCRIPTION = "99999999-1111-2222-3333-444444444444"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/pods/providers/Microsoft.Compute"
TOKEN = {"Authorization": "Bearer token"}


@dataclass(frozen=True)
class Server:
    """A running emulator."""

    url: str
    tls: ssl.SSLContext
    ca_file: Path


@dataclass
class Cloud:
    """The emulated Azure, and a way to it that may be broken."""

    way: FaultProxy
    ca_file: Path
    http: httpx.Client

    def environ(self) -> dict[str, str]:
        url = self.way.url
        return {
            "CLOUD_PROVIDER": "azure",
            "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
            "AZURE_TENANT_ID": "11111111-2222-3333-4444-555555555555",
            "AZURE_CLIENT_ID": "client",
            "AZURE_CLIENT_SECRET": "not-checked",
            "AZURE_AUTHORITY_HOST": url,
            "AZURE_RESOURCE_MANAGER": url,
            "AZURE_REGION": "westeurope",
            "AZURE_RESOURCE_GROUP": "pods",
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
        }

    def state(self) -> dict[str, Any]:
        return dict(self.http.post("/_control/state").json())

    def resources(self) -> dict[str, Any]:
        return dict(self.state()["resources"])

    def put(self, path: str, properties: dict[str, Any]) -> None:
        body = {"location": "westeurope", "properties": properties}
        self.http.put(f"{GROUP}/{path}", json=body, headers=TOKEN).raise_for_status()


@contextlib.contextmanager
def server(directory: Path) -> Iterator[Server]:
    """The emulator as a process."""
    tls, ca_file = make_tls(directory)
    with ServerProcess("tests.clouds.azure_images", ["--pair", str(directory / "server.pem")]) as process:
        yield Server(f"https://localhost:{int(process.ready_line)}", tls, ca_file)


@contextlib.contextmanager
def emptied(running: Server) -> Iterator[Cloud]:
    """It, as new."""
    trust = ssl.create_default_context(cafile=str(running.ca_file))
    with (
        httpx.Client(base_url=running.url, verify=trust, trust_env=False, timeout=60) as http,
        FaultProxy(running.url, running.tls, trust) as way,
    ):
        http.post("/_control/reset").raise_for_status()
        yield Cloud(way, running.ca_file, http)
