"""The pod VM's side: waiting, IPv6, a second card, an incumbent at the other end."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from caa.podnetwork.config import to_json
from caa.podnetwork.errors import ConfigError, NoPrimaryInterface, PodNetworkError
from caa.podnetwork.worker import TunnelSettings
from tests.network.topology import OUTSIDE_ADDRESS, Pod, Topology, echo_server, exchange, run, steady, sysctl


@pytest.fixture
def dual() -> Iterator[Topology]:
    """Pods with IPv6 beside IPv4."""
    made = Topology(ipv6=True)
    try:
        yield made
    finally:
        made.close()


def test_ipv6_is_carried_where_both_ends_know_it(dual: Topology) -> None:
    first, second = dual.pod(2), dual.pod(3)
    first.connect()
    second.connect()
    for address in (first.address, first.address6):
        with echo_server(first.podns, address):
            assert exchange(dual.worker, address, b"hello")[0] == b"hello"
            assert exchange(second.podns, address, b"x" * 3_000_000)[0] == b"x" * 3_000_000
    text = run("ip", "-n", first.podns, "-6", "address", "show", "dev", "eth0")
    assert "fe80::858:aff:fe84:2/64 scope link nodad" in text
    assert "tentative" not in text


def test_setup_of_an_ipv6_pod_can_be_repeated_and_mends(dual: Topology) -> None:
    pod = dual.pod(2)
    document = to_json(pod.connect())
    commands = (("ip", "-n", pod.podns, "-6", "address"), ("ip", "-n", pod.podns, "-6", "route"))
    before = [run(*command) for command in commands]
    pod.setup_vm(document)
    assert [run(*command) for command in commands] == before
    dual.ip(pod.podns, "addr del fd00:128::2/64 dev eth0", "route del ::/0")
    pod.setup_vm(document)
    assert [sorted(run(*command).splitlines()) for command in commands] == [sorted(t.splitlines()) for t in before]


def test_a_pod_with_ipv6_still_works_with_an_ipv4_only_peer(dual: Topology) -> None:
    pod = dual.pod(2)
    network = pod.inspect()
    pod.setup(network)
    incumbent_guest(pod)
    with echo_server(pod.podns, pod.address):
        assert exchange(dual.worker, pod.address, b"hello")[0] == b"hello"


def incumbent_guest(pod: Pod) -> None:
    """The pod's end as the incumbent's guest makes it, which knows nothing of our keys."""
    run("ip", "netns", "add", pod.podns)
    topology, tunnel_id = pod.topology, 555000 + pod.number
    topology.ip(
        pod.vm,
        f"link add vxlan0 type vxlan id {tunnel_id} remote 10.10.0.1 dstport 4789 nolearning",
        f"link set vxlan0 netns {pod.podns}",
    )
    topology.ip(
        pod.podns,
        "link set vxlan0 name eth0",
        f"link set eth0 address 0a:58:0a:84:00:{pod.number:02x} mtu 1450",
        f"addr add {pod.address}/24 dev eth0",
        "link set eth0 up",
        "route del 10.128.0.0/24",
        "route add 10.128.0.0/24 dev eth0",
        "route add default via 10.128.0.1",
    )


def incumbent_worker(pod: Pod) -> None:
    """The worker's end as the incumbent makes it."""
    topology, tunnel_id = pod.topology, 555000 + pod.number
    topology.ip(
        topology.worker,
        f"link add ppvxlan1 type vxlan id {tunnel_id} remote {pod.vm_addresses[0]} dstport 4789 nolearning",
        f"link set ppvxlan1 netns {pod.netns}",
    )
    topology.ip(pod.netns, "link set ppvxlan1 name vxlan1", "link set vxlan1 up")
    for source, target in (("eth0", "vxlan1"), ("vxlan1", "eth0")):
        run("tc", "-n", pod.netns, "qdisc", "add", "dev", source, "ingress")
        match = f"filter add dev {source} parent ffff: protocol all u32 match u32 0 0"
        run("tc", "-n", pod.netns, *match.split(), *f"action mirred egress redirect dev {target}".split())


def test_an_incumbents_worker_is_understood(topology: Topology) -> None:
    pod = topology.pod(2)
    incumbent_worker(pod)
    # As its own test has it: a route with nothing but a gateway.
    document = to_json(pod.inspect()) | {"routes": [{"Dst": "", "GW": "10.128.0.1", "Dev": ""}], "neighbors": None}
    pod.setup_vm(document)
    with echo_server(pod.podns, pod.address):
        assert exchange(topology.worker, pod.address, b"hello")[0] == b"hello"


def test_a_tunnel_that_an_incumbents_worker_made_is_kept_and_taken_away(topology: Topology) -> None:
    pod = topology.pod(2)
    before = run("tc", "-n", pod.netns, "qdisc"), steady(run("ip", "-n", pod.netns, "link"))
    incumbent_worker(pod)
    filters = ("tc", "-n", pod.netns, "filter", "show", "dev", "eth0", "ingress")
    made = run(*filters), run("ip", "-n", pod.netns, "-details", "link", "show", "vxlan1")
    network = pod.inspect()
    pod.setup(network)
    assert (run(*filters), run("ip", "-n", pod.netns, "-details", "link", "show", "vxlan1")) == made
    pod.teardown(network)
    after = run("tc", "-n", pod.netns, "qdisc"), steady(run("ip", "-n", pod.netns, "link"))
    assert after == before


def test_a_pod_of_a_routing_plugin_is_reached(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(
        pod.netns,
        "addr flush dev eth0",
        "addr add 10.129.5.2/32 dev eth0",
        "route add 169.254.1.1 dev eth0",
        "route add default via 169.254.1.1 dev eth0",
    )
    topology.ip(topology.worker, "link set veth2 nomaster", "route add 10.129.5.2/32 dev veth2")
    sysctl(topology.worker, "ipv4/conf/veth2/proxy_arp", "1")
    sysctl(topology.worker, "ipv4/neigh/veth2/proxy_delay", "0")
    pod.connect()
    with echo_server(pod.podns, "10.129.5.2"):
        assert exchange(topology.worker, "10.129.5.2", b"hello")[0] == b"hello"


def test_the_vm_may_get_its_network_late(topology: Topology) -> None:
    pod = topology.pod(2)
    document = to_json(pod.inspect())
    topology.ip(pod.vm, "route del default", "addr flush dev enc0")
    errors: list[BaseException] = []

    def run_setup() -> None:
        try:
            pod.setup_vm(document, patience=60)
        except BaseException as error:
            errors.append(error)

    waiting = threading.Thread(target=run_setup)
    waiting.start()
    topology.ip(pod.vm, "addr add 10.10.1.2/16 dev enc0", "route add default via 10.10.9.9")
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    assert errors == []


@pytest.mark.parametrize(
    ("settings", "breakage", "complaint"),
    [
        (
            TunnelSettings(),
            "route del default",
            "has no primary interface: there is no default route, after 0",
        ),
        (TunnelSettings(), "addr flush dev enc0", "the pod VM has no"),
        (TunnelSettings(host_interface="enc1"), "addr flush dev enc1", "no IPv4 address on a second interface"),
    ],
)
def test_a_vm_without_network_gives_up_after_its_patience(
    topology: Topology, settings: TunnelSettings, breakage: str, complaint: str
) -> None:
    pod = topology.pod(2)
    document = to_json(pod.inspect(settings))
    topology.ip(pod.vm, breakage)
    with pytest.raises(NoPrimaryInterface, match=complaint):
        pod.setup_vm(document, patience=0)


@pytest.mark.parametrize(("underlay", "expected"), [(1460, 1410), (1500, 1450), (9001, 1450)])
def test_the_mtu_follows_the_underlay_of_the_vm(topology: Topology, underlay: int, expected: int) -> None:
    pod = topology.pod(2)
    topology.ip(pod.vm, f"link set enc0 mtu {underlay}")
    pod.connect()
    assert f"mtu {expected} " in run("ip", "-n", pod.podns, "link", "show", "eth0")


def test_a_smaller_path_that_the_kernel_has_learned_counts(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(pod.vm, "route add 10.10.0.1/32 dev enc0 mtu 1400")
    pod.connect()
    assert "mtu 1350 " in run("ip", "-n", pod.podns, "link", "show", "eth0")


def test_what_leaves_the_cluster_goes_through_the_second_card(topology: Topology) -> None:
    pod, peer = topology.pod(2), topology.pod(3)
    topology.cable("br1", topology.outside, "enc1", "192.168.0.254/24")
    topology.ip(pod.vm, "route add default via 192.168.0.254 dev enc1 metric 300")
    network = pod.connect(TunnelSettings(external_network_via_podvm=True, pod_subnet_cidrs=("10.128.0.0/16",)))
    peer.connect()
    with echo_server(topology.outside, OUTSIDE_ADDRESS), echo_server(peer.podns, peer.address):
        assert exchange(pod.podns, OUTSIDE_ADDRESS, b"hello") == (b"hello", "192.168.0.2")
        assert exchange(pod.podns, peer.address, b"hello") == (b"hello", pod.address)
        before = run("ip", "-n", pod.podns, "route"), run("ip", "-n", pod.podns, "address")
        pod.setup_vm(to_json(network))
        assert (run("ip", "-n", pod.podns, "route"), run("ip", "-n", pod.podns, "address")) == before
    assert pod.messages == []


def test_without_a_second_card_all_goes_through_the_tunnel_and_that_is_said(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(pod.vm, "link del enc1")
    pod.connect(TunnelSettings(external_network_via_podvm=True))
    with echo_server(topology.outside, OUTSIDE_ADDRESS):
        assert exchange(pod.podns, OUTSIDE_ADDRESS, b"hello") == (b"hello", pod.address)
    assert pod.messages == ["the pod VM has no second network card with a way out; all traffic goes through the tunnel"]


def test_a_vm_without_iptables_gets_its_tunnel(
    topology: Topology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pod = topology.pod(2)
    network = pod.inspect()
    pod.setup(network)
    (tmp_path / "ip").symlink_to(shutil.which("ip") or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    pod.setup_vm(to_json(network))
    monkeypatch.undo()
    with echo_server(pod.podns, pod.address):
        assert exchange(topology.worker, pod.address, b"hello")[0] == b"hello"
    assert pod.messages == [
        "the tunnel may be in connection tracking: iptables-save is not installed; the tunnel's rules need it"
    ]


def test_an_interface_of_that_name_that_is_none_of_ours_is_left_alone(topology: Topology) -> None:
    pod = topology.pod(2)
    network = pod.inspect()
    pod.setup(network)
    run("ip", "netns", "add", pod.podns)
    topology.ip(pod.podns, "link add eth0 type bridge")
    with pytest.raises(PodNetworkError, match="has an interface eth0 that is not the tunnel's"):
        pod.setup_vm(to_json(network))
    assert "bridge" in run("ip", "-n", pod.podns, "-details", "link", "show", "eth0")


def test_an_object_that_cannot_be_used_is_refused_before_anything_is_done(topology: Topology) -> None:
    pod = topology.pod(2)
    with pytest.raises(ConfigError, match="pod-network must be a JSON object"):
        pod.setup_vm(None)
    assert pod.podns not in run("ip", "netns")


def test_the_command_that_failed_is_named(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(pod.vm, "link add foreign type vxlan id 555002 remote 10.10.0.1 dstport 4789")
    with pytest.raises(PodNetworkError, match=r"(?s)exist.* \(link add ppvni555002 netns"):
        pod.setup_vm(to_json(pod.inspect()))
