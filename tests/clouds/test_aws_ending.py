"""Listing and terminating on the emulated EC2."""

from __future__ import annotations

from dataclasses import replace

from providers.base import (
    InstanceState,
    MissingError,
)
from tests.clouds.aws_lab import SCOPE, Lab


def test_only_the_owners_instances_are_listed_whatever_their_state(lab: Lab) -> None:
    lab.account.emulator.delays(pending=10, shutting_down=10)
    provider = lab.provider()
    mine = [provider.launch(lab.request()) for _ in range(4)]
    for cluster, node in (("prod", "worker-2"), ("test", "worker-1"), ("prod", "worker-10")):
        request = lab.request()
        provider.launch(replace(request, owner=replace(request.owner, cluster=cluster, node=node)))
    lab.account.launch()  # somebody else's, without tags
    lab.account.emulator.advance(10)
    lab.account.ec2.stop_instances(InstanceIds=[mine[1].id])
    lab.end(provider, mine[2].id, mine[3].id)
    late = provider.launch(lab.request())
    states = {i.id: i.state for i in provider.instances(SCOPE)}
    assert states == {
        mine[0].id: InstanceState.RUNNING,
        mine[1].id: InstanceState.STOPPED,
        mine[2].id: InstanceState.TERMINATING,
        mine[3].id: InstanceState.TERMINATING,
        late.id: InstanceState.PENDING,
    }
    lab.account.emulator.advance(10)
    assert mine[2].id not in {i.id for i in provider.instances(SCOPE)}


def test_a_listing_has_all_pages(lab: Lab) -> None:
    provider = lab.provider()
    made = {provider.launch(lab.request()).id for _ in range(7)}
    lab.account.emulator.page_size(3)
    assert {i.id for i in provider.instances(SCOPE)} == made
    assert lab.calls("DescribeInstances") == 3


def test_a_listed_instance_is_the_launched_one(lab: Lab) -> None:
    provider = lab.provider()
    launched = provider.launch(lab.request())
    (listed,) = provider.instances(SCOPE)
    # Which call made it is told by that call only.
    assert replace(listed, state=launched.state, request_id=launched.request_id) == launched


def test_terminating_takes_everything_along_and_may_be_repeated(lab: Lab) -> None:
    provider = lab.provider()
    before = lab.account.emulator.counters()
    made = provider.launch(lab.request())
    lab.end(provider, made.id)
    lab.end(provider, made.id)
    assert provider.instances(SCOPE) == []
    after = lab.account.emulator.counters()
    assert (after["interfaces"], after["volumes"]) == (before["interfaces"], before["volumes"])


def test_an_instance_that_ec2_does_not_know_is_told_as_missing(lab: Lab) -> None:
    provider = lab.provider()
    made = provider.launch(lab.request())
    refused = provider.terminate([made.id, "i-0123456789abcdef0", "nonsense"])
    assert {one: (type(error), error.reason) for one, error in refused.items()} == {
        "i-0123456789abcdef0": (MissingError, "InstanceMissing"),
        "nonsense": (MissingError, "InstanceMissing"),
    }
    assert lab.account.state(made.id) == "terminated"


def test_many_instances_are_ended_in_one_call(lab: Lab) -> None:
    provider = lab.provider()
    made = [provider.launch(lab.request()).id for _ in range(5)]
    lab.end(provider, *made)
    assert lab.calls("TerminateInstances") == 1
    assert provider.instances(SCOPE) == []


def test_an_instance_that_ec2_does_not_see_yet_can_be_ended_later(lab: Lab) -> None:
    lab.account.emulator.staleness(seconds=5, terminate=True)
    provider = lab.provider()
    made = provider.launch(lab.request())
    assert isinstance(provider.terminate([made.id])[made.id], MissingError)
    lab.account.emulator.advance(5)
    lab.end(provider, made.id)
    assert lab.account.state(made.id) == "terminated"
