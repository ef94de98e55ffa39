"""IBM Cloud providers on the emulated IBM Cloud, on a clock that only the test moves."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import pytest

from providers.base import LaunchRequest, Offering, Owner, OwnerScope
from providers.ibmcloud.place import LABELS
from providers.ibmcloud.provider import IbmCloudProvider
from providers.ibmcloud.settings import IbmCloudKeys
from providers.keys import read_keys
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.ibm.emulator import IbmEmulator, Seed

SCOPE = OwnerScope("prod", "worker-1")
USER_DATA = b"#cloud-config\n\nwrite_files:\n  - path: /run/peerpod/apf.json\n    content: |\n      \xc3\xa9\n"
TYPE = "bx2-2x8"


class IbmLab:
    """Providers on one account, on a clock that only the test moves."""

    def __init__(self, emulator: IbmEmulator, seed: Seed, monkeypatch: pytest.MonkeyPatch) -> None:
        self.emulator, self.seed = emulator, seed
        self.zones = seed.zones
        self.now = 1000.0
        self._monkeypatch = monkeypatch
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        # On a loaded machine our metadata service may take longer than any true one.
        monkeypatch.setattr("providers.ibmcloud.place.TIMEOUT_SECONDS", 60)

    def environ(self, url: str = "", **changed: str) -> dict[str, str]:
        """The configuration; a change to "" unsets a key."""
        seed = self.seed
        return self.emulator.environ(url) | {
            "IBMCLOUD_PODVM_IMAGE_ID": seed.images["x86_64"],
            "IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME": TYPE,
            "IBMCLOUD_VPC_SUBNET_IDS": ",".join(seed.subnets[zone] for zone in self.zones),
            "IBMCLOUD_SECURITY_GROUP_IDS": seed.security_group,
            "IBMCLOUD_SSH_KEY_ID": seed.key,
            **changed,
        }

    def provider(self, url: str = "", **changed: str) -> IbmCloudProvider:
        """A provider as a fresh process would have it; `url` leads through a proxy."""
        given = self.environ(url, **changed)
        # The SDK reads the process's environment itself.
        self._monkeypatch.setenv("REQUESTS_CA_BUNDLE", given["REQUESTS_CA_BUNDLE"])
        labels = {label: given[label] for label in LABELS if label in given}
        made = IbmCloudProvider(read_keys(IbmCloudKeys, given), labels, clock=lambda: self.now)
        self._stack.callback(made.close)
        return made

    def request(self, zone: int = 0, profile: str = TYPE, **changed: Any) -> LaunchRequest:
        number = next(self._numbers)
        made = LaunchRequest(
            name=f"podvm-web-{number}",
            token=f"{number:064x}",
            owner=Owner("prod", "worker-1", f"{number:064x}", "default", "web", 1),
            offering=Offering(profile, self.zones[zone], 2, 8192),
            user_data=USER_DATA,
        )
        return replace(made, **changed)

    def end(self, provider: IbmCloudProvider, *ids: str) -> None:
        """Terminate what must be there."""
        assert provider.terminate(ids) == {}

    def calls(self, name: str) -> int:
        return int(self.emulator.counters()["calls"].get(name, 0))

    def ids(self) -> list[str]:
        """Every instance that was ever made, seen past the provider."""
        return sorted(one for ids in self.emulator.counters()["made"].values() for one in ids)

    def one(self) -> dict[str, Any]:
        """The only instance there is, as the API has it."""
        (found,) = self.emulator.instances()
        return found

    def proxy(self) -> FaultProxy:
        return self._stack.enter_context(self.emulator.proxy())

    def close(self) -> None:
        self._stack.close()
