"""The emulated EC2 keeps the promises that launching exactly once stands on. Plain moto keeps none of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.clouds.aws.account import Account

TOKEN = "sandbox-1-attempt-1"


def test_the_same_token_and_parameters_give_the_same_instance(account: Account) -> None:
    first = account.launch(ClientToken=TOKEN)
    assert account.launch(ClientToken=TOKEN) == first
    assert account.launch(ClientToken="another") != first
    assert len(account.instances()) == 2


def test_parallel_requests_with_one_token_make_one_instance(account: Account) -> None:
    tokens = [f"t{number}" for number in range(8) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda token: account.launch(ClientToken=token), tokens))
    assert len(ids) == 8
    assert sum(account.emulator.counters()["states"].values()) == 8


def test_parallel_requests_with_many_tokens_make_that_many_instances(account: Account) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda number: account.launch(ClientToken=f"t{number}"), range(24)))
    assert len(ids) == 24
    assert len({one["PrivateIpAddress"] for one in account.instances()}) == 24


@pytest.mark.parametrize(
    "change",
    [
        {"UserData": "one byte more"},
        {"InstanceType": "m6a.xlarge"},
        {"TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "attempt", "Value": "2"}]}]},
        {"MetadataOptions": {"HttpTokens": "required"}},
    ],
)
def test_the_same_token_with_any_other_parameter_is_refused(account: Account, change: dict[str, Any]) -> None:
    account.launch(ClientToken=TOKEN)
    assert account.launch_refusal(ClientToken=TOKEN, **change) == ("IdempotentParameterMismatch", 400)
    assert len(account.instances()) == 1


def test_the_token_of_a_terminated_instance_is_refused(account: Account) -> None:
    account.terminate(account.launch(ClientToken=TOKEN))
    assert account.launch_refusal(ClientToken=TOKEN) == ("IdempotentInstanceTerminated", 400)


def test_a_token_counts_in_its_zone_only(account: Account) -> None:
    first = account.launch(0, ClientToken=TOKEN)
    second = account.launch(1, ClientToken=TOKEN)
    assert first != second
    assert account.launch(0, ClientToken=TOKEN) == first
    assert account.emulator.counters()["tokens"] == {TOKEN: [first, second]}


def test_a_token_is_spent_by_success_only(account: Account) -> None:
    account.emulator.capacity({"instance_type": "m6a.large"})
    assert account.launch_refusal(ClientToken=TOKEN)[0] == "InsufficientInstanceCapacity"
    account.emulator.capacity()
    account.launch(ClientToken=TOKEN)


def test_a_token_too_long_is_refused(account: Account) -> None:
    assert account.launch_refusal(ClientToken="x" * 65) == ("InvalidParameterValue", 400)
    account.launch(ClientToken="x" * 64)


def test_a_dry_run_spends_no_token_and_launches_nothing(account: Account) -> None:
    assert account.launch_refusal(ClientToken=TOKEN, DryRun=True) == ("DryRunOperation", 412)
    assert account.instances() == []
    account.launch(ClientToken=TOKEN, UserData="another")


def test_terminating_twice_is_no_error(account: Account) -> None:
    nic = {"DeviceIndex": 0, "SubnetId": account.seed.subnets[account.seed.zones[0]], "DeleteOnTermination": True}
    instance_id = account.launch(SubnetId=None, SecurityGroupIds=None, NetworkInterfaces=[nic])
    assert account.terminate(instance_id)[0]["CurrentState"]["Name"] == "shutting-down"
    again = account.terminate(instance_id)[0]
    assert again["PreviousState"]["Name"] == again["CurrentState"]["Name"] == "terminated"


def test_one_missing_id_terminates_nothing(account: Account) -> None:
    instance_id = account.launch()
    call = account.ec2.terminate_instances
    refusal = account.refusal(call, InstanceIds=[instance_id, "i-0123456789abcdef0"])
    assert refusal == ("InvalidInstanceID.NotFound", 400)
    assert account.state(instance_id) == "running"
