"""Capacity, quotas, request limits and lists that lag: what a client of the emulated EC2 must live with."""

from __future__ import annotations

from typing import Any

from tests.clouds.aws.account import Account, ec2_client, instances_of
from tests.clouds.faultproxy import Fault, FaultProxy, Phase

SPOT = {"MarketType": "spot"}


def by_token(token: str) -> dict[str, Any]:
    return {"Filters": [{"Name": "client-token", "Values": [token]}]}


def test_capacity_is_short_by_type_zone_and_market(account: Account) -> None:
    short = ("InsufficientInstanceCapacity", 500)
    account.emulator.capacity(
        {"instance_type": "m6a.large", "zone": account.seed.zones[0], "market": "on-demand"}, {"market": "spot"}
    )
    assert account.launch_refusal(0) == short
    account.launch(1)
    account.launch(0, InstanceType="m6a.xlarge")
    assert account.launch_refusal(1, InstanceMarketOptions=SPOT) == short
    account.emulator.capacity()
    account.launch(0)


def test_capacity_runs_out_after_the_last_one(account: Account) -> None:
    account.emulator.capacity({"instance_type": "m6a.large", "remaining": 2})
    account.launch(ClientToken="a")
    account.launch(1)
    assert account.launch_refusal(2)[0] == "InsufficientInstanceCapacity"
    account.launch(ClientToken="a")  # a repeat needs no capacity


def test_quotas_count_the_vcpus_of_a_market(account: Account) -> None:
    account.emulator.quota(on_demand=4, spot=2)
    first = account.launch()
    account.launch()
    assert account.launch_refusal() == ("VcpuLimitExceeded", 400)
    account.launch(InstanceMarketOptions=SPOT)
    assert account.launch_refusal(InstanceMarketOptions=SPOT) == ("MaxSpotInstanceCountExceeded", 400)
    account.terminate(first)
    account.launch()


def test_an_ending_instance_still_counts(account: Account) -> None:
    account.emulator.quota(on_demand=2)
    account.emulator.delays(shutting_down=10)
    account.terminate(account.launch())
    assert account.launch_refusal()[0] == "VcpuLimitExceeded"
    account.emulator.advance(10)
    account.launch()


def test_request_limits_are_those_of_ec2(account: Account) -> None:
    account.emulator.limits()
    for _ in range(5):
        account.launch()
    assert account.launch_refusal() == ("RequestLimitExceeded", 503)
    account.emulator.advance(0.5)
    account.launch()
    assert account.launch_refusal()[0] == "RequestLimitExceeded"
    for _ in range(100):
        account.ec2.describe_instances(MaxResults=5)
    assert account.refusal(account.ec2.describe_instances)[0] == "RequestLimitExceeded"
    account.ec2.describe_subnets()  # each Describe action has a bucket of its own
    counters = account.emulator.counters()
    assert counters["calls"]["RunInstances"] == 8
    assert counters["errors"] == {"RunInstances RequestLimitExceeded": 2, "DescribeInstances RequestLimitExceeded": 1}


def test_a_new_instance_is_unknown_to_lists_for_some_calls(account: Account) -> None:
    known = account.launch()
    account.emulator.staleness(calls=2)
    new = account.launch(ClientToken="new")
    assert [one["InstanceId"] for one in account.instances()] == [known]
    unknown = account.refusal(account.ec2.describe_instances, InstanceIds=[new])
    assert unknown == ("InvalidInstanceID.NotFound", 400)
    assert [one["InstanceId"] for one in account.instances()] == [known, new]


def test_a_new_instance_is_unknown_to_lists_for_some_time(account: Account) -> None:
    account.emulator.staleness(seconds=3)
    new = account.launch(ClientToken="new")
    assert account.instances(**by_token("new")) == []
    assert account.launch(ClientToken="new") == new  # launching again knows it at once
    account.emulator.advance(3)
    assert [one["InstanceId"] for one in account.instances(**by_token("new"))] == [new]


def test_terminate_may_not_know_a_new_instance_either(account: Account) -> None:
    account.emulator.staleness(seconds=3, terminate=True)
    new = account.launch()
    unknown = account.refusal(account.ec2.terminate_instances, InstanceIds=[new])
    assert unknown == ("InvalidInstanceID.NotFound", 400)
    account.emulator.advance(3)
    account.terminate(new)
    assert account.state(new) == "terminated"


def test_instances_are_found_by_client_token(account: Account) -> None:
    account.launch(ClientToken="a")
    wanted = account.launch(ClientToken="b")
    assert [one["InstanceId"] for one in account.instances(**by_token("b"))] == [wanted]


def test_a_filter_that_does_not_exist_is_refused(account: Account) -> None:
    filters = [{"Name": "colour", "Values": ["red"]}]
    assert account.refusal(account.ec2.describe_instances, Filters=filters) == ("InvalidParameterValue", 400)


def test_lists_come_in_pages(account: Account) -> None:
    ids = [account.launch() for _ in range(7)]
    account.emulator.page_size(3)
    pages = [instances_of(page) for page in account.ec2.get_paginator("describe_instances").paginate()]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [one["InstanceId"] for page in pages for one in page] == ids


def test_a_page_goes_on_where_it_was_when_instances_come_and_go(account: Account) -> None:
    running = {"Name": "instance-state-name", "Values": ["running"]}
    ids = [account.launch() for _ in range(6)]
    account.emulator.page_size(3)
    first = account.ec2.describe_instances(Filters=[running])
    account.terminate(ids[0], ids[3])
    ids.append(account.launch())
    second = account.ec2.describe_instances(Filters=[running], NextToken=first["NextToken"])
    assert [one["InstanceId"] for one in instances_of(second)] == [ids[4], ids[5], ids[6]]


def test_a_page_size_out_of_range_is_refused(account: Account) -> None:
    assert account.refusal(account.ec2.describe_instances, MaxResults=4) == ("InvalidParameterValue", 400)


def test_what_is_not_emulated_says_so_in_ec2s_own_form(account: Account) -> None:
    refusal = account.refusal(account.ec2.describe_capacity_block_offerings, CapacityDurationHours=24)
    assert refusal == ("UnsupportedOperation", 400)


def test_the_sdk_retries_a_throttled_call(account: Account) -> None:
    account.emulator.limits({"RunInstances": (1, 1)})
    account.launch()
    with FaultProxy(account.emulator.url) as way:
        way.add(Fault.CALL, Phase.DONE, call=lambda _refused: account.emulator.advance(1), times=None)
        patient = ec2_client(way.url, attempts=5)
        try:
            patient.run_instances(**account.request())
        finally:
            patient.close()
    assert len(account.instances()) == 2
    assert account.emulator.counters()["errors"] == {"RunInstances RequestLimitExceeded": 1}
