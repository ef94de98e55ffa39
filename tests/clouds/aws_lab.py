"""AWS providers on the emulated EC2, on a clock that only the test moves."""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import replace
from typing import Any

import pytest

from providers.aws.provider import AwsProvider
from providers.aws.settings import AwsKeys
from providers.base import (
    LaunchRequest,
    Market,
    Offering,
    Owner,
    OwnerScope,
)
from providers.keys import read_keys
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy

SCOPE = OwnerScope("prod", "worker-1")
AUTH_FAILURE = b"<Response><Errors><Error><Code>AuthFailure</Code><Message>no</Message></Error></Errors></Response>"
UNAUTHORIZED = AUTH_FAILURE.replace(b"AuthFailure", b"UnauthorizedOperation")
USER_DATA = b"#cloud-config\n\nwrite_files:\n  - path: /run/peerpod/apf.json\n    content: |\n      \xc3\xa9\n"
RUN = "Action=RunInstances"


class Lab:
    """Providers on one account, on a clock that only the test moves."""

    def __init__(self, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        self.account = account
        self.zones = account.seed.zones
        self.now = 1000.0
        self._monkeypatch = monkeypatch
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        # On a loaded machine our metadata service may take longer than any true one.
        monkeypatch.setattr("providers.aws.metadata.TIMEOUT_SECONDS", 60)

    def environ(self, **changed: str) -> dict[str, str]:
        """The configuration; a change to "" unsets a key."""
        seed = self.account.seed
        return {
            "PODVM_AMI_ID": seed.images["x86_64"],
            "AWS_SUBNET_IDS": ",".join(seed.subnets[zone] for zone in self.zones),
            "AWS_SG_IDS": seed.security_group,
            "SSH_KP_NAME": seed.key_name,
            **changed,
        }

    def provider(self, url: str = "", **changed: str) -> AwsProvider:
        """A provider as a fresh process would have it; `url` leads through a proxy."""
        for key in [key for key in os.environ if key.startswith("AWS_")]:
            self._monkeypatch.delenv(key)
        given = self.account.emulator.environ(url) | self.environ(**changed)
        for key, value in given.items():
            if key.startswith("AWS_") and value:  # boto reads the process's environment itself
                self._monkeypatch.setenv(key, value)
        made = AwsProvider(read_keys(AwsKeys, given), clock=lambda: self.now)
        self._stack.callback(made.close)
        return made

    def request(self, zone: int = 0, **changed: Any) -> LaunchRequest:
        number = next(self._numbers)
        made = LaunchRequest(
            name=f"podvm-web-{number}",
            token=f"{number:064x}",
            owner=Owner("prod", "worker-1", f"{number:064x}", "default", "web", 1),
            offering=Offering("m6a.large", self.zones[zone], 2, 8192),
            user_data=USER_DATA,
        )
        return replace(made, **changed)

    def end(self, provider: AwsProvider, *ids: str) -> None:
        """Terminate what must be there."""
        assert provider.terminate(ids) == {}

    def calls(self, action: str) -> int:
        return int(self.account.emulator.counters()["calls"].get(action, 0))

    def ids(self) -> list[str]:
        """Every instance that was ever made, seen past the provider."""
        return sorted(i for ids in self.account.emulator.counters()["tokens"].values() for i in ids)

    def proxy(self) -> FaultProxy:
        return self._stack.enter_context(FaultProxy(self.account.emulator.url))

    def close(self) -> None:
        self._stack.close()


def spot(request: LaunchRequest) -> LaunchRequest:
    return replace(request, offering=replace(request.offering, market=Market.SPOT))
