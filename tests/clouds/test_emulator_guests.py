"""Guests of emulated instances, reached as pod VMs are: by the real agent proxy, with real certificates."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caa.agentproxy.control import Connected
from caa.clock import SystemClock
from caa.guestconfig import APF_PATH, GuestFile, TlsProfile, apf_json, cloud_config
from caa.pki import NodeKeys
from caa.ttrpc.frames import Code, StatusError
from tests.clouds.aws.account import Account
from tests.clouds.fakeguest import PORT, FakeGuests
from tests.wire.agentproxy_guest import ProxyProcess, short_directory

NAME = "podvm-web-12345678"
PATIENCE = 60.0


@pytest.fixture
def guests(account: Account) -> Iterator[FakeGuests]:
    with FakeGuests(account.emulator.url) as guests:
        yield guests


def user_data(keys: NodeKeys, name: str = NAME) -> str:
    """As `caa serve` sends it."""
    document = apf_json(
        pod_namespace="default",
        pod_name="web",
        identity=keys.issue(name),
        client_ca=keys.client_certificate,
        tls=TlsProfile(),
    )
    return cloud_config([GuestFile(APF_PATH, document)]).decode()


def connect(keys: NodeKeys, addresses: list[str], timeout: float = PATIENCE, name: str = NAME) -> Connected:
    """Through a real `caa proxy`, from open to an answering agent."""

    async def run(root: Path) -> Connected:
        proxy = ProxyProcess(root, redial_seconds=1)
        try:
            await proxy.started()
            files = (str(keys.ca_file), str(keys.client_cert_file), str(keys.client_key_file))
            await proxy.control.open("sb", str(root / "pods/sb/agent.ttrpc"), name, *files)
            return await proxy.control.connect("sb", addresses, PORT, timeout)
        finally:
            proxy.stop()

    with short_directory() as root:
        return asyncio.run(run(root))


def answers(address: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, PORT)) == 0


def wait_until(address: str, *, answering: bool) -> None:
    deadline = time.monotonic() + PATIENCE
    while answers(address) is not answering:
        assert time.monotonic() < deadline, f"{address} {'never' if answering else 'still'} answers"
        time.sleep(0.01)


@pytest.fixture
def keys(tmp_path: Path) -> NodeKeys:
    return NodeKeys(tmp_path / "pki", SystemClock())


def test_the_agent_proxy_reaches_the_guest_of_each_instance_by_its_own_certificate(
    account: Account, guests: FakeGuests, keys: NodeKeys
) -> None:
    names = ["podvm-a-00000001", "podvm-b-00000002"]
    found = [account.run(zone, UserData=user_data(keys, name))["PrivateIpAddress"] for zone, name in enumerate(names)]
    for address, name in zip(found, names, strict=True):
        connected = connect(keys, [address], name=name)
        assert connected.address == address
    with pytest.raises(StatusError) as refused:
        connect(keys, [found[0]], name=names[1])
    assert refused.value.code == Code.FAILED_PRECONDITION


def test_a_guest_is_reached_at_its_public_address(account: Account, guests: FakeGuests, keys: NodeKeys) -> None:
    nic = {
        "DeviceIndex": 0,
        "SubnetId": account.seed.subnets[account.seed.zones[0]],
        "AssociatePublicIpAddress": True,
    }
    instance_id = account.launch(
        SubnetId=None, SecurityGroupIds=None, NetworkInterfaces=[nic], UserData=user_data(keys)
    )
    address = account.one(instance_id)["PublicIpAddress"]
    assert address.startswith("127.51.")
    assert connect(keys, [address]).address == address


def test_a_guest_answers_only_after_its_instance_runs_and_has_booted(
    account: Account, guests: FakeGuests, keys: NodeKeys
) -> None:
    account.emulator.delays(pending=17, boot=12)
    address = account.run(UserData=user_data(keys))["PrivateIpAddress"]
    account.emulator.advance(28.9)
    with pytest.raises(StatusError) as late:
        connect(keys, [address], timeout=0.5)
    assert late.value.code == Code.DEADLINE_EXCEEDED
    account.emulator.advance(0.1)
    assert connect(keys, [address]).address == address


def test_a_terminated_instance_has_no_guest(account: Account, guests: FakeGuests, keys: NodeKeys) -> None:
    one = account.run(UserData=user_data(keys))
    address = one["PrivateIpAddress"]
    wait_until(address, answering=True)
    with socket.create_connection((address, PORT)):
        account.terminate(one["InstanceId"])
        wait_until(address, answering=False)
    assert account.emulator.guests() == {}


def test_an_instance_with_user_data_that_a_pod_vm_refuses_never_answers(
    account: Account, guests: FakeGuests, keys: NodeKeys
) -> None:
    broken = account.run(UserData="#cloud-config\nruncmd: [reboot]\n")
    good = account.run(UserData=user_data(keys))
    wait_until(good["PrivateIpAddress"], answering=True)
    guests.wait_for_log(f"{broken['InstanceId']} at {broken['PrivateIpAddress']}: no guest: line 2: key (runcmd)")
    assert not answers(broken["PrivateIpAddress"])


def test_an_address_given_again_is_the_new_instances_guest(
    account: Account, guests: FakeGuests, keys: NodeKeys
) -> None:
    account.emulator.reset()
    account.seed = account.emulator.seed(zones=1, subnet_bits=28)
    first = account.run(UserData=user_data(keys, "podvm-old-00000001"))
    while len(account.instances()) < 11:
        account.launch()
    wait_until(first["PrivateIpAddress"], answering=True)
    account.terminate(first["InstanceId"])
    wait_until(first["PrivateIpAddress"], answering=False)
    second = account.run(UserData=user_data(keys, "podvm-new-00000002"))
    assert second["PrivateIpAddress"] == first["PrivateIpAddress"]
    assert connect(keys, [first["PrivateIpAddress"]], name="podvm-new-00000002").address == first["PrivateIpAddress"]
