"""What a workload gets at the metadata addresses, through real tunnels: its VM's metadata, and never the worker's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from caa.metadata import server
from caa.podnetwork import metadatadoor
from caa.sandbox import SandboxState
from tests.network.metadataworld import World, curl, world
from tests.network.topology import OUTSIDE_ADDRESS, Pod, echo_server, exchange, run, sysctl, tc_filters, within

ADDRESS, ADDRESS6 = "169.254.169.254", "[fd00:ec2::254]"
TOKEN, TTL = "X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Pods 2 and 3 on AWS, for tests that change nothing."""
    with world(tmp_path_factory.mktemp("metadata")) as made:
        made.pod(2)
        made.pod(3)
        yield made


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("metadata")) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_reaches_the_worker(request: pytest.FixtureRequest) -> Iterator[None]:
    worlds = [request.getfixturevalue(name) for name in ("shared", "fresh") if name in request.fixturenames]
    yield
    for made in worlds:
        assert made.trap.heard == []
        assert made.trap.packets() == 0


def token(pod: Pod, address: str = ADDRESS) -> str:
    status, found = curl(pod, "-X", "PUT", f"http://{address}/latest/api/token", "-H", f"{TTL}: 21600")
    assert status == 200, found
    return found


def read(pod: Pod, path: str, address: str = ADDRESS) -> tuple[int, str]:
    return curl(pod, f"http://{address}/latest/{path}", "-H", f"{TOKEN}: {token(pod, address)}")


def python(pod: Pod, program: str) -> str:
    """What a program of the workload prints."""
    return run("ip", "netns", "exec", pod.podns, sys.executable, "-c", program).strip()


def test_the_trap_works_a_pod_without_a_tunnel_reaches_the_workers_service(fresh: World) -> None:
    pod = fresh.topology.pod(2)
    for address in (ADDRESS, ADDRESS6):
        assert curl(pod, f"http://{address}/", namespace=pod.netns) == (200, "i-worker")
    assert fresh.trap.packets() > 4
    fresh.trap.heard.clear()
    for tool in ("iptables", "ip6tables"):
        run(*f"ip netns exec {fresh.topology.worker} {tool} -t mangle -Z".split())


@pytest.mark.parametrize("address", [ADDRESS, ADDRESS6])
def test_curl_reads_the_pod_vms_identity(shared: World, address: str) -> None:
    for number in (2, 3):
        assert read(shared.pods[number], "meta-data/instance-id", address) == (200, f"i-{number:017x}")


def test_boto3_finds_region_and_metadata(shared: World) -> None:
    program = (
        "from botocore.utils import IMDSFetcher, InstanceMetadataRegionFetcher as R\n"
        "f = IMDSFetcher(timeout=20); t = f._fetch_metadata_token()\n"
        "print(R(timeout=20).retrieve_region(), f._get_request('latest/meta-data/instance-id', None, t).text)\n"
    )
    assert python(shared.pods[2], program) == "eu-west-1 i-00000000000000002"


def test_a_token_of_another_pod_is_refused(shared: World) -> None:
    foreign = token(shared.pods[3])
    status, _ = curl(shared.pods[2], f"http://{ADDRESS}/latest/meta-data/instance-id", "-H", f"{TOKEN}: {foreign}")
    assert status == 401


def test_another_pods_address_gets_no_answer_from_a_pod_that_takes_it(shared: World) -> None:
    pod, victim = shared.pods[2], shared.pods[3]
    before = len(shared.asked)
    shared.topology.ip(pod.podns, f"addr add {victim.address}/32 dev eth0", f"addr add {victim.address6}/128 dev eth0")
    try:
        for address, source in ((ADDRESS, victim.address), (ADDRESS6, victim.address6), (ADDRESS, "10.128.0.77")):
            if source == "10.128.0.77":
                shared.topology.ip(pod.podns, f"addr add {source}/32 dev eth0")
            status, error = curl(pod, "-m", "1", "--interface", source, f"http://{address}/latest/meta-data/")
            assert status == 0, error
    finally:
        run("ip", "-n", pod.podns, "addr", "del", f"{victim.address}/32", "dev", "eth0")
        run("ip", "-n", pod.podns, "addr", "del", f"{victim.address6}/128", "dev", "eth0")
        run("ip", "-n", pod.podns, "addr", "del", "10.128.0.77/32", "dev", "eth0")
    assert len(shared.asked) == before
    assert read(victim, "meta-data/instance-id") == (200, "i-00000000000000003")


def test_a_forwarded_request_is_refused(shared: World) -> None:
    for header in ("X-Forwarded-For: 10.0.0.1", "Forwarded: for=10.0.0.1"):
        url = f"http://{ADDRESS}/latest/api/token"
        assert curl(shared.pods[2], "-X", "PUT", url, "-H", f"{TTL}: 60", "-H", header)[0] == 403


def test_a_huge_request_is_refused(shared: World) -> None:
    pod = shared.pods[2]
    assert curl(pod, f"http://{ADDRESS}/latest/", "-H", f"X: {'x' * 20_000}")[0] in (0, 431)
    status, _ = curl(pod, "-X", "PUT", f"http://{ADDRESS}/latest/api/token", "-H", f"{TTL}: 60", "-d", "x" * 10_000)
    assert status in (0, 400)
    assert read(pod, "meta-data/instance-id")[0] == 200


def test_a_slow_request_is_cut_off(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = shared.pods[2]
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)
    connection = within(pod.podns, lambda: socket.create_connection((ADDRESS, 80), timeout=60))
    with connection, contextlib.suppress(ConnectionError):  # cut off before it has said so much
        connection.sendall(b"GET /latest/meta-data/ HTTP/1.1\r\nHost: x\r\n")
        assert connection.recv(100) == b""


def test_the_token_stays_within_one_hop(fresh: World) -> None:
    """A network inside the pod, one hop further, gets no token; with a limit of 2 it does."""
    pod = fresh.pod(2)
    inner = fresh.topology.namespace("inner")
    fresh.topology.ip(
        pod.podns,
        f"link add in0 type veth peer name eth0 netns {inner}",
        "addr add 172.30.0.1/24 dev in0",
        "link set in0 up",
    )
    fresh.topology.ip(inner, "addr add 172.30.0.2/24 dev eth0", "link set eth0 up")
    fresh.topology.ip(inner, "route add default via 172.30.0.1")
    sysctl(pod.podns, "ipv4/ip_forward", "1")
    run(*f"ip netns exec {pod.podns} iptables -t nat -A POSTROUTING -s 172.30.0.0/24 -j MASQUERADE".split())
    ask = ("-X", "PUT", f"http://{ADDRESS}/latest/api/token", "-H", f"{TTL}: 21600")
    assert curl(pod, *ask)[0] == 200
    assert curl(pod, *ask, "-m", "1", namespace=inner)[0] == 0
    fresh.configure(CAA_METADATA_HOP_LIMIT="2")
    assert curl(pod, *ask, namespace=inner)[0] == 200


def test_azure_identity_is_told_that_there_is_no_identity_and_curl_sees_the_vm(fresh: World) -> None:
    pod = fresh.pod(2)
    fresh.configure(CAA_METADATA_DIALECT="azure")
    program = (
        "from azure.identity import CredentialUnavailableError\n"
        "from azure.identity._credentials.imds import ImdsCredential\n"
        "c = ImdsCredential(_enable_imds_probe=True)\n"
        "try: c.get_token('https://management.azure.com/.default')\n"
        "except CredentialUnavailableError as e: print(c._endpoint_available, e)\n"
    )
    told = python(pod, program)
    assert told.startswith("True ")
    assert "Identity not found" in told
    url = f"http://{ADDRESS}/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"
    assert curl(pod, url, "-H", "Metadata: true") == (200, "i-00000000000000002")
    assert curl(pod, url, "-H", "Metadata: true", "-H", "X-Forwarded-For: 1.2.3.4")[0] == 400


def test_ibms_own_client_gets_a_token_and_curl_the_instance(fresh: World) -> None:
    pod = fresh.pod(2)
    fresh.configure(CAA_METADATA_DIALECT="ibmcloud")
    program = (
        "from ibm_cloud_sdk_core.token_managers.vpc_instance_token_manager import VPCInstanceTokenManager as M\n"
        "print(M().retrieve_instance_identity_token())\n"
    )
    bearer = python(pod, program)
    url = f"http://{ADDRESS}/metadata/v1/instance?version=2022-03-01"
    status, body = curl(pod, url, "-H", f"Authorization: Bearer {bearer}")
    assert (status, json.loads(body)["id"]) == (200, "i-00000000000000002")
    assert curl(pod, url)[0] == 401


@pytest.mark.parametrize("mode", ["off", "vm"])
def test_in_other_modes_everything_is_answered_403(fresh: World, mode: str) -> None:
    pod = fresh.pod(2)
    fresh.configure(CAA_METADATA_MODE=mode)
    for address in (ADDRESS, ADDRESS6):
        assert curl(pod, f"http://{address}/latest/meta-data/")[0] == 403


def test_while_the_service_is_down_requests_end_nowhere_and_the_next_one_answers(fresh: World) -> None:
    pod = fresh.pod(2)
    held = token(pod)
    fresh.end()
    for address in (ADDRESS, ADDRESS6):
        assert curl(pod, "-m", "1", f"http://{address}/latest/meta-data/")[0] == 0
    # Frames made by hand, to the tunnel's own MAC address and from nobody's, that the namespace there would route on.
    # Some CNI plugins have given it the gateway's MAC address for good.
    gateway = json.loads(run("ip", "-n", fresh.topology.worker, "-json", "link", "show", "cni0"))[0]["address"]
    fresh.topology.ip(pod.netns, f"neigh replace 10.128.0.1 lladdr {gateway} dev eth0 nud permanent")
    sysctl(pod.netns, "ipv4/ip_forward", "1")
    for name in ("all", "eth0", "vxlan1"):
        sysctl(pod.netns, f"ipv4/conf/{name}/rp_filter", "0")
    fresh.topology.ip(
        pod.podns, "addr add 10.128.0.77/32 dev eth0", f"neigh replace 10.128.0.1 lladdr {tunnel_mac(pod)} dev eth0"
    )
    assert curl(pod, "-m", "1", "--interface", "10.128.0.77", f"http://{ADDRESS}/latest/meta-data/")[0] == 0
    fresh.topology.ip(pod.podns, "neigh del 10.128.0.1 dev eth0", "addr del 10.128.0.77/32 dev eth0")
    fresh.begin()
    fresh.serve(2)
    # The token outlives the service: the key is the node's.
    assert curl(pod, f"http://{ADDRESS}/latest/meta-data/instance-id", "-H", f"{TOKEN}: {held}")[0] == 200


def test_while_the_kernel_still_has_what_a_killed_service_held_the_pod_waits_for_the_next_look(
    fresh: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pod = fresh.pod(2)
    fresh.end()
    held = f"ip -n {pod.netns} link add held link vxlan1 type macvlan mode passthru".split()
    deadline = time.monotonic() + 60
    while subprocess.run(held, capture_output=True).returncode:  # until the service's own is gone
        assert time.monotonic() < deadline
    monkeypatch.setattr(metadatadoor, "_PREDECESSOR_SECONDS", 0.2)
    fresh.begin()
    assert not fresh.setup(2)
    assert not fresh.setup(2)
    assert caplog.text.count("gets no instance metadata") == 1
    fresh.topology.ip(pod.netns, "link del held")
    assert fresh.setup(2)
    assert read(pod, "meta-data/instance-id")[0] == 200


def tunnel_mac(pod: Pod) -> str:
    found = json.loads(run("ip", "-n", pod.netns, "-json", "link", "show", "vxlan1"))
    return str(found[0]["address"])


def test_a_pod_without_a_row_or_a_vm_is_told_nothing(fresh: World) -> None:
    pod = fresh.pod(2)
    assert read(pod, "meta-data/instance-id")[0] == 200
    other = fresh.topology.pod(3)
    other.connect()  # a tunnel that nobody serves
    assert curl(other, "-m", "1", f"http://{ADDRESS}/latest/meta-data/")[0] == 0


@pytest.mark.parametrize(
    "breakage",
    [
        "ip -n {netns} link del vxlan1",
        "tc -n {netns} filter del dev vxlan1 ingress pref 1",
        "tc -n {netns} filter del dev vxlan1 ingress",
        "ip -n {netns} route del blackhole 169.254.169.254",
    ],
)
def test_what_was_damaged_is_mended_by_the_next_look(fresh: World, breakage: str) -> None:
    pod = fresh.pod(2)
    before = tc_filters(pod.netns, "vxlan1")
    run(*breakage.format(netns=pod.netns).split())
    fresh.setup(2)
    assert tc_filters(pod.netns, "vxlan1") == before
    assert "blackhole 169.254.169.254" in run("ip", "-n", pod.netns, "route")
    assert read(pod, "meta-data/instance-id") == (200, "i-00000000000000002")


def carried(pod: Pod) -> int:
    """Bytes that the filter of the way in has counted since it was made."""
    text = run("tc", "-n", pod.netns, "-s", "filter", "show", "dev", "vxlan1", "ingress")
    return sum(map(int, re.findall(r"Sent (\d+) bytes", text)))


def test_setup_again_keeps_filters_and_connections(fresh: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 60.0)
    pod = fresh.pod(2)
    with echo_server(fresh.topology.outside, OUTSIDE_ADDRESS):
        exchange(pod.podns, OUTSIDE_ADDRESS, b"x" * 10_000)
    before = carried(pod)
    assert before > 10_000
    connection = within(pod.podns, lambda: socket.create_connection((ADDRESS, 80), timeout=60))
    with connection:
        fresh.setup(2)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
    assert carried(pod) >= before


def test_teardown_ends_it(fresh: World) -> None:
    pod = fresh.pod(2)
    fresh.do(fresh.tunnels.teardown(fresh.sandboxes[2]))
    assert "blackhole" not in run("ip", "-n", pod.netns, "route")
    assert curl(pod, "-m", "1", f"http://{ADDRESS}/")[0] == 0
    fresh.setup(2)
    assert read(pod, "meta-data/instance-id")[0] == 200


def test_a_stop_that_comes_while_the_tunnel_is_built_or_mended_leaves_nothing(fresh: World) -> None:
    pod = fresh.pod(2)
    sandbox, addresses = fresh.sandboxes[2], pod.vm_addresses

    async def both() -> None:
        building = asyncio.create_task(fresh.tunnels.setup(sandbox, addresses))
        await asyncio.sleep(0)  # it has begun
        await fresh.tunnels.teardown(sandbox)
        await building

    for _ in range(3):
        fresh.do(both())
        assert "vxlan1" not in run("ip", "-n", pod.netns, "link")
        assert "peerpod" not in run("ip", "netns", "exec", fresh.topology.worker, "iptables-save", "-t", "raw")


def test_a_look_after_tunnels_that_comes_after_the_end_began_makes_none(fresh: World) -> None:
    pod = fresh.pod(2)
    fresh.ledger.save_sandbox(replace(fresh.sandboxes[2], state=SandboxState.STOPPING))
    fresh.do(fresh.tunnels.teardown(fresh.sandboxes[2]))
    assert fresh.setup(2)
    assert "vxlan1" not in run("ip", "-n", pod.netns, "link")


def test_a_namespace_without_ipv6_is_served_over_ipv4(fresh: World) -> None:
    pod = fresh.pod(2)
    fresh.do(fresh.tunnels.teardown(fresh.sandboxes[2]))
    sysctl(pod.netns, "ipv6/conf/all/disable_ipv6", "1")
    fresh.setup(2)
    assert read(pod, "meta-data/instance-id")[0] == 200
    fresh.do(fresh.tunnels.teardown(fresh.sandboxes[2]))
    assert "vxlan1" not in run("ip", "-n", pod.netns, "link")


def test_the_pods_other_traffic_goes_on(fresh: World) -> None:
    pod = fresh.pod(2)
    with echo_server(fresh.topology.outside, OUTSIDE_ADDRESS):
        assert exchange(pod.podns, OUTSIDE_ADDRESS, b"hello")[0] == b"hello"
