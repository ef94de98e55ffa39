"""Tunnels between namespaces that stand for a worker and pod VMs: real devices, real packets."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from caa.podnetwork.config import PodNetwork, to_json
from caa.podnetwork.errors import PodNetworkError, TeardownFailed, TunnelIdInUse
from caa.podnetwork.namespace import NamespaceGone
from caa.podnetwork.tunnel import teardown, usable
from caa.podnetwork.worker import TunnelSettings
from tests.network.topology import (
    FIRST,
    OUTSIDE_ADDRESS,
    Pod,
    Topology,
    echo_server,
    exchange,
    fragments,
    path_of,
    rebuilt,
    run,
    snapshot,
    steady,
    within,
)

PLAIN, DEDICATED = TunnelSettings(), TunnelSettings(host_interface="enc1")
BULK = bytes(range(256)) * (20 << 12)  # 20 MiB


@pytest.fixture(params=[PLAIN, DEDICATED], ids=["plain", "dedicated"])
def settings(request: pytest.FixtureRequest) -> TunnelSettings:
    found = request.param
    assert isinstance(found, TunnelSettings)
    return found


@pytest.fixture
def jumbo() -> Iterator[Topology]:
    """Jumbo frames everywhere: 9001 bytes as in a cloud, pods with what is left of that."""
    made = Topology(mtu=9001, pod_mtu=8951)
    try:
        yield made
    finally:
        made.close()


def test_the_pod_is_reached_from_its_worker_and_from_another_pod(topology: Topology, settings: TunnelSettings) -> None:
    first, second = topology.pod(2), topology.pod(3)
    first.connect(settings)
    second.connect(settings)
    with echo_server(first.podns, first.address):
        for asking, source in ((topology.worker, "10.128.0.1"), (second.podns, second.address)):
            assert exchange(asking, first.address, b"hello") == (b"hello", source)
    assert first.messages == second.messages == []


def test_the_tunnel_takes_the_interface_it_was_given(topology: Topology, settings: TunnelSettings) -> None:
    pod = topology.pod(2)
    network = pod.connect(settings)
    interface = "enc1" if network.dedicated else "enc0"
    before = received_bytes(pod.vm, interface)
    with echo_server(pod.podns, pod.address):
        exchange(topology.worker, pod.address, b"x" * 100_000)
    assert network.dedicated == (settings is DEDICATED)
    assert received_bytes(pod.vm, interface) - before > 100_000


def test_the_pod_reaches_the_outside_through_the_worker(topology: Topology) -> None:
    pod = topology.pod(2)
    pod.connect()
    with echo_server(topology.outside, OUTSIDE_ADDRESS):
        assert exchange(pod.podns, OUTSIDE_ADDRESS, b"hello") == (b"hello", pod.address)


def test_bulk_both_ways_makes_no_fragment(topology: Topology) -> None:
    bulk_without_fragments(topology, 1450)


def test_jumbo_frames_are_used_where_both_ends_have_them(jumbo: Topology) -> None:
    bulk_without_fragments(jumbo, 8951)


def bulk_without_fragments(topology: Topology, mtu: int) -> None:
    first, second = topology.pod(2), topology.pod(3)
    first.connect()
    second.connect()
    places = [topology.worker, first.vm, second.vm, first.podns, second.podns]
    before = {place: fragments(place) for place in places}
    with echo_server(first.podns, first.address):
        assert exchange(second.podns, first.address, BULK)[0] == BULK
        assert exchange(topology.worker, first.address, BULK)[0] == BULK
    # A datagram as large as the interface takes; with one byte more, it would be in fragments.
    assert datagram(first, topology.worker, mtu - 28) == mtu - 28
    assert {place: fragments(place) for place in places} == before
    assert datagram(first, topology.worker, mtu - 27) == mtu - 27
    assert fragments(first.podns)["FragCreates"] == before[first.podns]["FragCreates"] + 2
    assert fragments(first.vm) == before[first.vm]


def datagram(pod: Pod, target: str, size: int) -> int:
    """Send a datagram of `size` bytes from the pod to the worker; the size that arrived."""
    receiver = within(target, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender = within(pod.podns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        receiver.settimeout(60)
        receiver.bind(("10.128.0.1", 0))
        sender.sendto(b"x" * size, receiver.getsockname())
        return len(receiver.recv(1 << 16))


def received_bytes(namespace: str, interface: str) -> int:
    found = json.loads(run("ip", "-n", namespace, "-json", "-stats", "link", "show", interface))
    return int(found[0]["stats64"]["rx"]["bytes"])


def tracked(namespace: str, port: int) -> set[str]:
    """The source ports of what the kernel tracks to a port."""
    text = run("ip", "netns", "exec", namespace, "cat", "/proc/net/nf_conntrack")
    return set(re.findall(rf"sport=(\d+) dport={port}\b", text))


def test_tunnel_packets_are_not_tracked(topology: Topology) -> None:
    pod = topology.pod(2)
    pod.connect()
    # The rules are made beside the device, whose first packet of all may be seen.
    before = tracked(topology.worker, 4789)
    with echo_server(pod.podns, pod.address):
        exchange(topology.worker, pod.address, b"hello")
    assert tracked(topology.worker, 8080)  # the connection inside it is, which shows that anything is
    assert tracked(topology.worker, 4789) <= before
    assert rules(topology.worker) == [
        "-A OUTPUT -j peerpod-OUTPUT",
        "-A PREROUTING -j peerpod-PREROUTING",
        *(
            f"-A peerpod-{chain} {match} 10.10.1.2/32 -p udp -m comment "
            '--comment "peerpod [vni:555002]" -m udp --dport 4789 -j NOTRACK'
            for chain, match in (("OUTPUT", "-d"), ("PREROUTING", "-s"))
        ),
    ]


def rules(namespace: str) -> list[str]:
    text = run("ip", "netns", "exec", namespace, "iptables-save", "-t", "raw")
    return sorted(line for line in text.splitlines() if line.startswith("-A"))


def test_teardown_leaves_everything_as_it_was(topology: Topology, settings: TunnelSettings) -> None:
    other, pod = topology.pod(2), topology.pod(3)
    before = snapshot(topology.worker), snapshot(pod.netns)
    kept = other.connect(settings)
    with_other = snapshot(topology.worker), snapshot(pod.netns)
    network = pod.connect(settings)
    assert (snapshot(topology.worker), snapshot(pod.netns)) != with_other
    pod.teardown(network)
    assert (snapshot(topology.worker), snapshot(pod.netns)) == with_other
    pod.teardown(network)
    other.teardown(kept)
    assert (snapshot(topology.worker), snapshot(pod.netns)) == before


def test_teardown_of_what_was_never_set_up_is_success(topology: Topology) -> None:
    pod = topology.pod(2)
    before = snapshot(topology.worker), snapshot(pod.netns)
    pod.teardown(pod.inspect())
    assert (snapshot(topology.worker), snapshot(pod.netns)) == before


def test_teardown_after_the_pods_namespace_is_gone_still_removes_the_rules(topology: Topology) -> None:
    pod = topology.pod(2)
    before = snapshot(topology.worker)
    network = pod.connect()
    run("ip", "netns", "del", pod.netns)
    pod.teardown(network)
    # The interface of the pod went with its namespace, so only the rules are comparable.
    assert rules(topology.worker) == [line for line in before.splitlines() if line.startswith("-A") and "raw" in line]
    assert within(topology.worker, lambda: usable(network.tunnel_id, network.vxlan_port))


def test_filters_and_rules_of_others_stay(topology: Topology) -> None:
    pod = topology.pod(2)
    run("tc", "-n", pod.netns, "qdisc", "add", "dev", "eth0", "ingress")
    run(*f"tc -n {pod.netns} filter add dev eth0 ingress pref 7 protocol ip u32 match u32 0 0 flowid 1:5".split())
    iptables = ("ip", "netns", "exec", topology.worker, "iptables", "-t", "raw")
    run(*iptables, "-N", "peerpod-OUTPUT")
    run(*iptables, "-A", "peerpod-OUTPUT", "-d", "192.0.2.1/32", "-m", "comment", "--comment", "mine", "-j", "ACCEPT")
    before = snapshot(topology.worker), snapshot(pod.netns)
    network = pod.connect()
    with echo_server(pod.podns, pod.address):
        assert exchange(topology.worker, pod.address, b"hello")[0] == b"hello"
    pod.teardown(network)
    # The jump to the chain stays as long as somebody has a rule in the chain.
    run(*iptables, "-D", "OUTPUT", "-j", "peerpod-OUTPUT")
    assert (snapshot(topology.worker), snapshot(pod.netns)) == before


def test_a_failed_step_of_a_teardown_does_not_stop_the_rest(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = topology.pod(2)
    network = pod.connect()
    monkeypatch.setenv("PATH", "/nonexistent")  # no iptables
    with pytest.raises(TeardownFailed, match="iptables-save is not installed") as caught:
        pod.teardown(network)
    monkeypatch.undo()
    assert len(caught.value.failures) == 1
    assert "vxlan1" not in run("ip", "-n", pod.netns, "link")
    assert rules(topology.worker) != []
    pod.teardown(network)
    assert rules(topology.worker) == []


def test_teardown_reports_every_failure(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    network = topology.pod(2).connect()
    monkeypatch.setenv("PATH", "/nonexistent")
    # A file that is no network namespace: it is opened, but not entered.
    with pytest.raises(TeardownFailed) as caught:
        within(topology.worker, lambda: teardown("/proc/self/ns/uts", network))
    assert ["cannot enter" in text or "iptables" in text for text in caught.value.failures] == [True, True]


def state(topology: Topology, pod: Pod) -> str:
    """All that setup makes, with numbers of devices and handles: what was made again looks different."""
    text = "\n".join(
        (
            run("ip", "-n", pod.netns, "-details", "address"),
            *(run("tc", "-n", pod.netns, "filter", "show", "dev", dev, "ingress") for dev in ("eth0", "vxlan1")),
            run("ip", "netns", "exec", topology.worker, "nft", "--handle", "list", "ruleset"),
            run("ip", "-n", pod.podns, "-details", "address"),
            run("ip", "-n", pod.podns, "route", "show", "table", "all"),
            run("ip", "-n", pod.podns, "neigh", "show", "nud", "permanent"),
            run("ip", "netns", "exec", pod.vm, "nft", "--handle", "list", "ruleset"),
        )
    )
    # Counters go on, and IPv6's link-local addresses come when duplicates were looked for, whatever setup does.
    return steady(re.sub(r"packets \d+ bytes \d+| *inet6 fe80.*\n *valid_lft.*\n", "", text))


def test_setup_of_a_healthy_tunnel_changes_nothing_and_loses_no_packet(topology: Topology) -> None:
    pod = topology.pod(2)
    network = pod.connect()
    count = 400
    receiver = within(pod.podns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender = within(topology.worker, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with receiver, sender:
        receiver.bind((pod.address, 0))
        receiver.settimeout(60)
        target = receiver.getsockname()
        sender.sendto(b"first", target)  # both know each other's MAC from here on
        receiver.recv(100)
        before = state(topology, pod)
        done = threading.Event()

        def mend() -> None:
            try:
                for _ in range(5):
                    pod.setup(network)
                    pod.setup_vm(to_json(network))
            finally:
                done.set()

        mending = threading.Thread(target=mend)
        mending.start()
        sent = received = 0
        while not done.is_set() or sent < count:
            sender.sendto(b"x", target)
            sent += 1
            received += len(receiver.recv(100))  # one at a time, so that no buffer overflows
        mending.join()
    assert received == sent
    assert state(topology, pod) == before


BREAKAGES = {
    "the device is gone": "ip -n {netns} link del vxlan1",
    "the device is down": "ip -n {netns} link set vxlan1 down",
    "the way out is gone": "tc -n {netns} qdisc del dev eth0 ingress",
    "the way in is gone": "tc -n {netns} filter del dev vxlan1 ingress",
    "the rules are gone": "ip netns exec {worker} iptables -t raw -F peerpod-OUTPUT",
    "all rules are gone": "ip netns exec {worker} nft flush ruleset",
    "the jump is gone": "ip netns exec {worker} iptables -t raw -D PREROUTING -j peerpod-PREROUTING",
    "the pod VM's device is gone": "ip -n {podns} link del eth0",
    "the pod VM's device is down": "ip -n {podns} link set eth0 down",
    "the pod's address is gone": "ip -n {podns} addr flush dev eth0",
    "the pod's MAC is another": "ip -n {podns} link set eth0 address 02:00:00:00:00:99",
    "the pod's routes are gone": "ip -n {podns} route flush dev eth0",
    "the pod's MTU is another": "ip -n {podns} link set eth0 mtu 1280",
    "the pod VM's rules are gone": "ip netns exec {vm} iptables -t raw -F",
}


@pytest.mark.parametrize("breakage", BREAKAGES.values(), ids=BREAKAGES.keys())
def test_what_is_missing_or_wrong_is_mended(topology: Topology, breakage: str) -> None:
    pod = topology.pod(2)
    network = pod.connect()
    with echo_server(topology.outside, OUTSIDE_ADDRESS):
        assert exchange(pod.podns, OUTSIDE_ADDRESS, b"hello")[0] == b"hello"
        before = everything(topology, pod)
        run(*breakage.format(worker=topology.worker, netns=pod.netns, podns=pod.podns, vm=pod.vm).split())
        if "nft flush" in breakage:  # and whoever made the others makes them again
            topology.worker_rules()
        pod.setup(network)
        pod.setup_vm(to_json(network))
        assert everything(topology, pod) == before
        assert exchange(pod.podns, OUTSIDE_ADDRESS, b"hello")[0] == b"hello"


def everything(topology: Topology, pod: Pod) -> list[str]:
    return [rebuilt(snapshot(namespace)) for namespace in (topology.worker, pod.netns, pod.podns, pod.vm)]


def test_a_tunnel_to_another_pod_vm_replaces_the_first(topology: Topology) -> None:
    pod, other = topology.pod(2), topology.pod(3)
    network = pod.connect()
    pod.vm_addresses, pod.vm, pod.podns = other.vm_addresses, other.vm, other.podns
    pod.setup(network)
    pod.setup_vm(to_json(network))
    with echo_server(pod.podns, pod.address):
        run("ip", "-n", topology.worker, "neigh", "flush", "all")
        assert exchange(topology.worker, pod.address, b"hello")[0] == b"hello"
    assert all("10.10.1.2" not in line for line in rules(topology.worker))
    pod.teardown(network)
    assert rules(topology.worker) == []


def test_a_device_of_another_program_is_left_alone(topology: Topology) -> None:
    pod = topology.pod(2)
    run("ip", "-n", pod.netns, "link", "add", "vxlan1", "type", "bridge")
    before = snapshot(pod.netns)
    network = pod.inspect()
    with pytest.raises(PodNetworkError, match="has a bridge interface named vxlan1"):
        pod.setup(network)
    pod.teardown(network)
    assert snapshot(pod.netns) == before


def test_an_id_that_something_on_the_node_has_is_not_usable(topology: Topology) -> None:
    hidden = topology.namespace("hidden")
    port = 4789
    before = snapshot(topology.worker)

    def ask(tunnel_id: int) -> bool:
        return within(topology.worker, lambda: usable(tunnel_id, port))

    topology.ip(topology.worker, f"link add foreign type vxlan id 600001 remote 10.10.9.9 dstport {port}")
    # Moved out of sight; its id is the worker's all the same.
    topology.ip(topology.worker, f"link add moved netns {hidden} type vxlan id 600002 remote 10.10.9.9 dstport {port}")
    topology.ip(topology.worker, f"link add other type vxlan id 600003 remote 10.10.9.9 dstport {port + 1}")
    assert [ask(tunnel_id) for tunnel_id in (600000, 600001, 600002, 600003)] == [True, False, False, True]
    topology.ip(topology.worker, "link del foreign", "link del other")
    topology.ip(hidden, "link del moved")
    assert ask(600002)
    assert snapshot(topology.worker) == before


def test_the_id_of_a_running_tunnel_is_not_usable_until_its_end(topology: Topology) -> None:
    pod = topology.pod(2)
    network = pod.connect()
    assert not within(topology.worker, lambda: usable(network.tunnel_id, network.vxlan_port))
    pod.teardown(network)
    assert within(topology.worker, lambda: usable(network.tunnel_id, network.vxlan_port))


def test_what_a_crash_left_of_asking_does_not_hold_the_id(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(topology.worker, f"link add ppvni{FIRST + 2} type vxlan id {FIRST + 2} dstport 4789")
    assert within(topology.worker, lambda: usable(FIRST + 2, 4789))
    topology.ip(topology.worker, f"link add ppvni{FIRST + 2} type vxlan id {FIRST + 2} dstport 4789")
    pod.connect()
    assert "ppvni" not in run("ip", "-n", topology.worker, "link")


def test_what_a_crash_left_of_setup_is_finished_or_made_again(topology: Topology) -> None:
    pod = topology.pod(2)
    network = pod.inspect()
    for remote in ("10.10.1.2", "10.10.1.99"):
        options = f"type vxlan id {FIRST + 2} remote {remote} dstport 4789 nolearning"
        topology.ip(topology.worker, f"link add ppvni{FIRST + 2} netns {pod.netns} {options}")
        pod.setup(network)
        text = run("ip", "-n", pod.netns, "-details", "link")
        assert "remote 10.10.1.2 " in text
        assert "vxlan1" in text
        assert "ppvni" not in text
        pod.teardown(network)
        assert "vxlan" not in run("ip", "-n", pod.netns, "-details", "link")


def test_a_port_that_is_taken_is_told_apart_from_an_id_that_is(topology: Topology) -> None:
    def ask() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("0.0.0.0", 4789))
            return usable(FIRST, 4789)

    before = snapshot(topology.worker)
    with pytest.raises(PodNetworkError, match="VXLAN_PORT: UDP port 4789 is taken on this node"):
        within(topology.worker, ask)
    assert snapshot(topology.worker) == before


def test_setup_with_an_id_that_is_taken_says_so(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(topology.worker, f"link add foreign type vxlan id {FIRST + 2} remote 10.10.9.9 dstport 4789")
    network = pod.inspect()
    with pytest.raises(TunnelIdInUse, match="tunnel id 555002 with UDP port 4789 belongs to another VXLAN device"):
        pod.setup(network)
    pod.teardown(network)
    assert rules(topology.worker) == []
    assert "foreign" in run("ip", "-n", topology.worker, "link")


def test_a_dedicated_tunnel_needs_a_second_address_of_the_vm(topology: Topology) -> None:
    pod = topology.pod(2)
    network = pod.inspect(DEDICATED)
    pod.vm_addresses = pod.vm_addresses[:1]
    with pytest.raises(PodNetworkError, match="the pod VM has 1 addresses; its tunnel needs 2"):
        pod.setup(network)


@pytest.mark.parametrize("address", ["fd00::5", "", "10.10.1.2 -j ACCEPT"])
def test_an_address_that_is_not_ipv4_is_refused_before_anything_is_done(topology: Topology, address: str) -> None:
    pod = topology.pod(2)
    pod.vm_addresses = [address]
    with pytest.raises(PodNetworkError, match="is not IPv4, which tunnels need"):
        pod.setup(pod.inspect())
    assert rules(topology.worker) == []


def test_setup_without_the_pods_namespace_says_so(topology: Topology) -> None:
    pod = topology.pod(2)
    network: PodNetwork = pod.inspect()
    run("ip", "netns", "del", pod.netns)
    with pytest.raises(NamespaceGone, match=path_of(pod.netns)):
        pod.setup(network)
