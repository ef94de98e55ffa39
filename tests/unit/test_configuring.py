"""What of a change applies without a restart, every problem at once, and the provider in use while it is exchanged."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from caa.configuring import build, differing, hand_to_sdk, keep, read, restart_keys
from caa.inuse import InUse
from caa.sources import Layer, Source, merge
from providers.base import ConfigError, Provider

AWS = {"CLOUD_PROVIDER": "aws", "PODVM_AMI_ID": "ami-1", "AWS_REGION": "eu-west-1", "NODE_NAME": "n"}
NAMES = ["KEPT_1", "KEPT_2", "LIVE_1", "LIVE_2"]
KEPT = NAMES[:2]
STATES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["", " ", "a", "b"]))


def problems(**keys: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as error:
        read(AWS | keys)
    assert len({problem.key for problem in error.value.problems}) == len(error.value.problems)
    return {problem.key: problem.message for problem in error.value.problems}


def set_in(values: dict[str, str], names: list[str]) -> dict[str, str]:
    return {name: values[name].strip() for name in names if values.get(name, "").strip()}


@given(STATES, STATES)
def test_kept_keys_stay_as_they_run_and_all_others_are_as_wanted(
    running: dict[str, str], wanted: dict[str, str]
) -> None:
    effective, waiting = keep(running, wanted, KEPT)
    assert set_in(effective, KEPT) == set_in(running, KEPT)
    assert set_in(effective, NAMES[2:]) == set_in(wanted, NAMES[2:])
    assert waiting == [name for name in KEPT if running.get(name, "").strip() != wanted.get(name, "").strip()]
    assert keep(running, effective, KEPT) == (effective, [])
    assert differing(running, effective, NAMES) == [
        name for name in NAMES[2:] if running.get(name, "").strip() != wanted.get(name, "").strip()
    ]


def test_problems_of_the_service_and_of_its_cloud_are_told_at_once() -> None:
    found = problems(PROXY_TIMEOUT="soon", ROOT_VOLUME_SIZE="-1", TAGS="none", FORWARDER_PORT="0")
    assert found.keys() == {"PROXY_TIMEOUT", "ROOT_VOLUME_SIZE", "TAGS", "FORWARDER_PORT"}
    assert problems(CLOUD_PROVIDER="awz", PROXY_TIMEOUT="soon").keys() == {"CLOUD_PROVIDER", "PROXY_TIMEOUT"}
    assert problems(CLOUD_PROVIDER="", PODVM_AMI_ID="").keys() == {"CLOUD_PROVIDER"}


def test_one_half_of_static_credentials_is_told_by_the_other_half() -> None:
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY"):
        build(AWS | {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE"})


def test_a_whole_configuration_is_settings_and_provider_of_the_same_keys() -> None:
    made = build(AWS)
    assert made.settings.cloud_provider == made.provider.name == "aws"
    assert made.provider.account == "aws/eu-west-1"
    made.provider.close()


def test_keys_that_another_cloud_keeps_do_not_count() -> None:
    assert "USE_PUBLIC_IP" in restart_keys("aws")
    assert "LIBVIRT_URI" in restart_keys("libvirt")
    assert "LIBVIRT_URI" not in restart_keys("aws")
    assert "PODVM_AMI_ID" not in restart_keys("aws")


def test_the_sdk_gets_the_mounted_keys_that_it_alone_reads() -> None:
    role = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/caa", "AWS_SECRET_ACCESS_KEY": "secret"}
    merged = merge([Layer(Source.SECRET, role), Layer(Source.ENVIRONMENT, AWS)])
    environ = {"AWS_ROLE_ARN": "arn:of-the-environment", "HOME": "/root"}
    hand_to_sdk(merged, environ)
    assert environ == {"AWS_ROLE_ARN": "arn:aws:iam::1:role/caa", "HOME": "/root"}


# Exchange while in use


class Exchanges(RuleBasedStateMachine):
    """Users come and go while providers are exchanged. A provider is whatever can be told apart from others."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: list[Any] = []
        self.made: list[Any] = [object()]
        self.users: list[tuple[contextlib.ExitStack, Any]] = []
        self.in_use = InUse(cast(Provider, self.made[0]), self.closed.append)

    @rule()
    def come(self) -> None:
        stack = contextlib.ExitStack()
        provider = stack.enter_context(self.in_use.use())
        assert provider is self.made[-1]
        self.users.append((stack, provider))

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        stack, _ = self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))
        stack.close()

    @rule()
    def exchange(self) -> None:
        self.made.append(object())
        self.in_use.exchange(self.made[-1])

    @invariant()
    def a_provider_is_closed_once_when_it_is_neither_current_nor_used(self) -> None:
        needed = {id(self.made[-1]), *(id(provider) for _, provider in self.users)}
        assert sorted(map(id, self.closed)) == sorted(id(one) for one in self.made if id(one) not in needed)


TestExchanges = Exchanges.TestCase
