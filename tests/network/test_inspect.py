"""What is read of a pod's namespace and of the worker's network, in namespaces like theirs."""

from __future__ import annotations

import logging

import pytest

from caa.podnetwork.config import Neighbor, Route, to_json
from caa.podnetwork.errors import NoPrimaryInterface, PodNetworkError
from caa.podnetwork.namespace import NamespaceGone
from caa.podnetwork.worker import TunnelSettings, inspect
from tests.network.topology import Topology, path_of, run, within


def test_a_pod_of_the_bridge_plugin_is_told_as_the_incumbent_tells_it(topology: Topology) -> None:
    pod = topology.pod(2, mac="0a:58:0a:84:03:ce")
    topology.ip(pod.netns, "neigh add 10.128.0.1 lladdr 0a:58:0a:80:00:01 dev eth0 nud permanent")
    assert list(to_json(pod.inspect()).items()) == [
        ("podip", "10.128.0.2/24"),
        ("pod-hw-addr", "0a:58:0a:84:03:ce"),
        ("interface", "eth0"),
        ("worker-node-ip", "10.10.0.1/16"),
        ("tunnel-type", "vxlan"),
        (
            "routes",
            [
                {"dst": "0.0.0.0/0", "gw": "10.128.0.1", "dev": "eth0", "protocol": "boot"},
                {"dst": "10.128.0.0/24", "gw": "", "dev": "eth0", "protocol": "kernel", "scope": "link"},
            ],
        ),
        (
            "neighbors",
            [{"ip": "10.128.0.1", "hw-addr": "0a:58:0a:80:00:01", "dev": "eth0", "state": "permanent"}],
        ),
        ("mtu", 1500),
        ("index", 2),
        ("vxlan-port", 4789),
        ("vxlan-id", 555002),
        ("dedicated", False),
        ("external-net-via-pod-vm", False),
    ]


def test_routes_of_daemons_other_tables_types_and_interfaces_are_not_carried(topology: Topology) -> None:
    pod = topology.pod(2)
    plain = pod.inspect().routes
    topology.ip(
        pod.netns,
        "link add net1 type veth peer name net1p",
        "link set net1 up",
        "addr add 172.30.0.2/24 dev net1",
        "route add 10.1.0.0/16 via 10.128.0.1 proto bird",
        "route add 10.2.0.0/16 via 10.128.0.1 table 77",
        "route add blackhole 10.3.0.0/16",
        "route add 10.4.0.0/16 via 10.128.0.1 proto static",
        "neigh add 10.128.0.9 lladdr 0a:58:0a:80:00:09 dev eth0 nud stale",
        "neigh add 172.30.0.9 lladdr 0a:58:0a:80:00:09 dev net1 nud permanent",
    )
    found = pod.inspect()
    assert found.routes == (plain[0], Route("10.4.0.0/16", "10.128.0.1", "eth0", "static"), plain[1])
    assert found.neighbors == ()


def test_a_pod_of_a_routing_plugin_with_a_host_address_and_a_set_neighbor_is_read(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(
        pod.netns,
        "addr flush dev eth0",
        "addr add 10.128.5.2/32 dev eth0",
        "route add 169.254.1.1 dev eth0",
        "route add default via 169.254.1.1 dev eth0",
        "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
    )
    found = pod.inspect()
    assert found.pod_ip == "10.128.5.2/32"
    assert found.routes == (
        Route("0.0.0.0/0", "169.254.1.1", "eth0", "boot"),
        Route("169.254.1.1/32", "", "eth0", "boot", "link"),
    )
    assert found.neighbors == (Neighbor("169.254.1.1", "ee:ee:ee:ee:ee:ee", "eth0"),)


def test_the_default_route_with_the_lowest_metric_says_where_tunnels_leave(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(topology.worker, "route add default via 192.168.0.254 dev enc1 metric 50")
    assert pod.inspect().worker_ip == "10.10.0.1/16"
    topology.ip(topology.worker, "route del default dev enc0", "route add default via 10.10.9.9 metric 51")
    found = pod.inspect()
    assert (found.worker_ip, found.dedicated) == ("192.168.0.1/24", False)


def test_a_default_route_over_several_ways_counts(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(
        topology.worker,
        "route replace default nexthop via 192.168.0.254 dev enc1 nexthop via 10.10.9.9 dev enc0",
    )
    assert pod.inspect().worker_ip == "192.168.0.1/24"


def test_the_address_of_the_default_route_is_the_workers_where_there_are_several(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(topology.worker, "addr add 10.10.0.7/16 dev enc0")
    assert pod.inspect().worker_ip == "10.10.0.1/16"
    topology.ip(topology.worker, "route replace default via 10.10.9.9 src 10.10.0.7")
    assert pod.inspect().worker_ip == "10.10.0.7/16"


def test_a_host_interface_other_than_the_primary_one_is_dedicated(topology: Topology) -> None:
    pod = topology.pod(2)
    found = pod.inspect(TunnelSettings(host_interface="enc1"))
    assert (found.worker_ip, found.dedicated) == ("192.168.0.1/24", True)
    assert not pod.inspect(TunnelSettings(host_interface="enc0")).dedicated


def test_the_mtu_that_the_tunnel_leaves_by_is_told_when_it_is_not_the_usual_one(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(topology.worker, "link set enc0 mtu 1460")
    assert to_json(pod.inspect())["underlay-mtu"] == 1460


def test_the_port_is_the_one_that_was_chosen(topology: Topology) -> None:
    assert topology.pod(2).inspect(TunnelSettings(vxlan_port=9000)).vxlan_port == 9000


def test_pod_subnets_are_routed_through_the_gateway_with_an_external_network(
    topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    pod = topology.pod(2)
    cidrs = ("10.244.0.0/16", "nonsense", " 10.96.0.0/12", "10.1.2.3/8")
    plain = pod.inspect(TunnelSettings(pod_subnet_cidrs=cidrs))
    with caplog.at_level(logging.ERROR):
        found = pod.inspect(TunnelSettings(external_network_via_podvm=True, pod_subnet_cidrs=cidrs))
    assert found.external_via_podvm
    assert found.routes == (
        *plain.routes,
        Route("10.244.0.0/16", "10.128.0.1", "eth0"),
        Route("10.96.0.0/12", "10.128.0.1", "eth0"),
        Route("169.254.169.254/32", "10.128.0.1", "eth0"),  # or the VM's own service would answer, out there
    )
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["nonsense", "10.1.2.3/8"]


def test_what_is_wrong_with_a_pods_network_is_said(topology: Topology) -> None:
    pod = topology.pod(2)
    topology.ip(pod.netns, "addr add 10.128.0.77/24 dev eth0")
    with pytest.raises(PodNetworkError, match=r"more than one IPv4 address \(10.128.0.2/24, 10.128.0.77/24\)"):
        pod.inspect()
    topology.ip(pod.netns, "addr flush dev eth0", "route add default dev eth0")
    with pytest.raises(PodNetworkError, match="the pod's interface eth0 has no IPv4 address"):
        pod.inspect()
    topology.ip(pod.netns, "route del default")
    with pytest.raises(NoPrimaryInterface, match=f"{pod.netns} has no primary interface: there is no default route"):
        pod.inspect()
    run("ip", "netns", "del", pod.netns)
    with pytest.raises(NamespaceGone, match=pod.netns):
        pod.inspect()
    with pytest.raises(PodNetworkError, match="no network namespace of its own"):
        within(topology.worker, lambda: inspect("", TunnelSettings()))
    with pytest.raises(PodNetworkError, match="cannot enter the network namespace"):
        within(topology.worker, lambda: inspect("/proc/self/status", TunnelSettings()))


def test_what_is_wrong_with_the_workers_network_is_said(topology: Topology) -> None:
    pod = topology.pod(2)
    with pytest.raises(PodNetworkError, match="HOST_INTERFACE: the worker node has no network interface 'enc7'"):
        pod.inspect(TunnelSettings(host_interface="enc7"))
    topology.ip(topology.worker, "addr flush dev enc1")
    with pytest.raises(PodNetworkError, match="the worker node's interface enc1 has no IPv4 address"):
        pod.inspect(TunnelSettings(host_interface="enc1"))
    topology.ip(topology.worker, "route del default")
    with pytest.raises(NoPrimaryInterface, match="the worker node has no primary interface"):
        pod.inspect()
    assert path_of(pod.netns)


def test_ipv6_of_the_pod_is_read_beside_ipv4() -> None:
    topology = Topology(ipv6=True)
    try:
        found = topology.pod(2).inspect().ipv6
    finally:
        topology.close()
    assert found.addresses == ("fd00:128::2/64",)
    assert found.routes == (
        Route("::/0", "fd00:128::1", "eth0", "boot"),
        Route("fd00:128::/64", "", "eth0", "kernel"),
    )
