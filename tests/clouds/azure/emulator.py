"""The emulated Azure as a test sees it: a process to start, keys that lead there, and control methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.clouds.azure.names import name_of
from tests.clouds.emulated import TlsEmulator

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


class AzureEmulator(TlsEmulator):
    """Its region is in what it seeds. What may be kept (`keeping`): interfaces, disks, public_ips."""

    def __init__(self) -> None:
        super().__init__("tests.clouds.azure", name_of)

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

    def delays(
        self, pending: float = 0.0, boot: float = 0.0, shutting_down: float = 0.0, guest_ready: float = 0.0
    ) -> None:
        """Seconds from the PUT to a VM that runs, from there to an answering guest, from DELETE to gone, and from the
        answering guest to the end of ARM's operation."""
        self._do("delays", pending=pending, boot=boot, shutting_down=shutting_down, guest_ready=guest_ready)

    def sizes(self, *sizes: dict[str, Any]) -> None:
        """More VM sizes: name, family, cpus, memory (GiB)."""
        self._do("sizes", sizes=list(sizes))

    def quota(self, vcpus: dict[str, int] | None = None) -> None:
        """vCPUs by family, cores or lowPriorityCores; what is not named has no quota."""
        self._do("quota", vcpus=vcpus or {})

    def barred(self, *rules: dict[str, Any]) -> None:
        """Restrictions of sizes: size, zones (or none for the region), reason."""
        self._do("barred", rules=list(rules))

    def counters(self) -> dict[str, Any]:
        """calls and errors by request, vms, interfaces, disks, public_ips, made (name -> vmIds)."""
        return dict(self._do("counters"))

    def overview(self) -> dict[str, Any]:
        """vms; made (name -> vmIds); ever: how many were made of each kind; unused: name and tags, by kind, of what
        came with VMs that are gone."""
        return dict(self._do("overview"))

    def body(self, name: str) -> dict[str, Any]:
        """Of the PUT that made a VM."""
        return dict(self._do("body", name=name))

    def fail(self, name: str, code: str, message: str = "", *, running: bool = False) -> None:
        """Let a VM's operation fail; `running`: the VM runs all the same."""
        self._do("fail", name=name, code=code, message=message, running=running)
