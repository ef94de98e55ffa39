"""Azure providers on the emulated Azure, on a clock that only the test moves."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import pytest

from providers.azure.provider import AzureProvider
from providers.azure.settings import AzureKeys
from providers.base import LaunchRequest, Offering, Owner, OwnerScope
from providers.keys import read_keys
from tests.clouds.azure.emulator import AzureEmulator, Seed
from tests.clouds.faultproxy import FaultProxy

SCOPE = OwnerScope("prod", "worker-1")
USER_DATA = b"#cloud-config\n\nwrite_files:\n  - path: /run/peerpod/apf.json\n    content: |\n      \xc3\xa9\n"
TYPE = "Standard_D2as_v5"
NOTHING = {"vms": 0, "interfaces": 0, "disks": 0, "public_ips": 0}


class AzureLab:
    """Providers on one resource group, on a clock that only the test moves."""

    def __init__(self, emulator: AzureEmulator, seed: Seed, monkeypatch: pytest.MonkeyPatch) -> None:
        self.emulator, self.seed = emulator, seed
        self.now = 1000.0
        self._monkeypatch = monkeypatch
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        # On a loaded machine our tokens may take longer than any true ones.
        monkeypatch.setattr("providers.azure.client.TOKEN_SECONDS", 60)

    def environ(self, url: str = "", **changed: str) -> dict[str, str]:
        """The configuration of ordinary VMs in three zones; a change to "" unsets a key."""
        seed = self.seed
        return self.emulator.environ(url) | {
            "AZURE_SUBSCRIPTION_ID": seed.subscription,
            "AZURE_RESOURCE_GROUP": seed.group,
            "AZURE_REGION": seed.region,
            "AZURE_SUBNET_ID": seed.subnet,
            "AZURE_NSG_ID": seed.nsg,
            "AZURE_IMAGE_ID": seed.images["plain"],
            "AZURE_INSTANCE_SIZE": TYPE,
            "AZURE_ZONES": "1,2,3",
            "DISABLECVM": "true",
            **changed,
        }

    def provider(self, url: str = "", **changed: str) -> AzureProvider:
        """A provider as a fresh process would have it; `url` leads through a proxy."""
        given = self.environ(url, **changed)
        for key in ("REQUESTS_CA_BUNDLE", "AZURE_AUTHORITY_HOST"):  # the SDK reads the process's environment itself
            self._monkeypatch.setenv(key, given[key])
        made = AzureProvider(read_keys(AzureKeys, given), clock=lambda: self.now)
        self._stack.callback(made.close)
        return made

    def request(self, zone: str = "1", size: str = TYPE, **changed: Any) -> LaunchRequest:
        number = next(self._numbers)
        made = LaunchRequest(
            name=f"podvm-web-{number}",
            token=f"{number:064x}",
            owner=Owner("prod", "worker-1", f"{number:064x}", "default", "web", 1),
            offering=Offering(size, zone, 2, 8192),
            user_data=USER_DATA,
        )
        return replace(made, **changed)

    def left(self) -> dict[str, int]:
        """How many there are of what costs money, seen past the provider."""
        counters = self.emulator.counters()
        return {kind: counters[kind] for kind in NOTHING}

    def calls(self, name: str) -> int:
        return int(self.emulator.counters()["calls"].get(name, 0))

    def proxy(self) -> FaultProxy:
        return self._stack.enter_context(self.emulator.proxy())

    def close(self) -> None:
        self._stack.close()
