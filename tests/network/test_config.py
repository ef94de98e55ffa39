"""The pod-network object: byte for byte the incumbent's, and read as leniently and as strictly as it must be."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.podnetwork.config import (
    NEIGHBOR_STATES,
    ROUTE_PROTOCOLS,
    IPv6,
    Neighbor,
    PodNetwork,
    Route,
    from_json,
    to_json,
)
from caa.podnetwork.errors import ConfigError

GOLDEN = """{
    "podip": "10.244.0.19/24",
    "pod-hw-addr": "0e:8f:62:f3:81:ad",
    "interface": "eth0",
    "worker-node-ip": "10.224.0.4/16",
    "tunnel-type": "vxlan",
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "10.244.0.1",
            "dev": "eth0",
            "protocol": "boot"
        },
        {
            "dst": "10.244.0.0/24",
            "gw": "",
            "dev": "eth0",
            "protocol": "kernel",
            "scope": "link"
        }
    ],
    "neighbors": [
        {
            "ip": "169.254.1.1",
            "hw-addr": "ee:ee:ee:ee:ee:ee",
            "dev": "eth0",
            "state": "permanent"
        }
    ],
    "mtu": 1450,
    "index": 3,
    "vxlan-port": 4789,
    "vxlan-id": 555003,
    "dedicated": false,
    "external-net-via-pod-vm": false
}"""

NETWORK = PodNetwork(
    pod_ip="10.244.0.19/24",
    pod_mac="0e:8f:62:f3:81:ad",
    interface="eth0",
    worker_ip="10.224.0.4/16",
    mtu=1450,
    routes=(
        Route("0.0.0.0/0", "10.244.0.1", "eth0", "boot"),
        Route("10.244.0.0/24", "", "eth0", "kernel", "link"),
    ),
    neighbors=(Neighbor("169.254.1.1", "ee:ee:ee:ee:ee:ee", "eth0"),),
).with_tunnel_id(555003)


def small(**more: object) -> dict[str, Any]:
    """The least that a worker sends."""
    return {"podip": "10.1.0.5/24", "pod-hw-addr": "0a:00:00:00:00:05", "interface": "eth0"} | {
        "worker-node-ip": "10.0.0.4/16",
        **more,
    }


def test_the_object_is_written_as_the_incumbent_writes_it() -> None:
    assert json.dumps(to_json(NETWORK), indent=4) == GOLDEN


def test_what_was_written_is_read_back() -> None:
    assert from_json(json.loads(GOLDEN)) == NETWORK


def test_empty_lists_are_null_and_zero_numbers_of_the_tunnel_are_left_out() -> None:
    network = PodNetwork("10.1.0.5/24", "0a:00:00:00:00:05", "eth0", "10.0.0.4/16", 1500, vxlan_port=0)
    written = to_json(network)
    assert written["routes"] is None
    assert written["neighbors"] is None
    assert not {"vxlan-port", "vxlan-id", "underlay-mtu", "ipv6"} & set(written)
    assert list(written)[-2:] == ["dedicated", "external-net-via-pod-vm"]


def test_a_tunnel_without_an_id_of_its_own_has_that_of_its_index() -> None:
    read = from_json(small(index=7))
    assert (read.vxlan_id, read.tunnel_id, read.vxlan_port) == (0, 555007, 4789)


def test_an_older_workers_spelling_of_keys_is_understood() -> None:
    read = from_json(small(routes=[{"Dst": "", "GW": "10.128.0.1", "Dev": ""}], MTU=1500))
    assert read.routes == (Route("0.0.0.0/0", "10.128.0.1", "eth0"),)
    assert read.mtu == 1500


def test_the_scope_universe_is_the_same_as_none() -> None:
    read = from_json(small(routes=[{"dst": "10.0.0.0/8", "gw": "", "dev": "eth0", "scope": "universe"}]))
    assert read.routes[0].scope == ""


def test_what_is_ours_comes_last_and_is_read_back() -> None:
    six = IPv6(
        ("fd00::5/64",),
        (Route("::/0", "fe80::1", "eth0", "static"), Route("fd00::/64", "", "eth0", "kernel")),
        (Neighbor("fe80::1", "ee:ee:ee:ee:ee:ee", "eth0"),),
    )
    network = NETWORK._replace(ipv6=six, underlay_mtu=9001)
    written = to_json(network)
    assert list(written)[-2:] == ["underlay-mtu", "ipv6"]
    assert from_json(json.loads(json.dumps(written))) == network


def test_what_a_later_worker_may_add_is_ignored() -> None:
    assert from_json(small(mtu=1500) | {"something-new": {"a": 1}}) == from_json(small(mtu=1500))


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        (None, "pod-network must be a JSON object"),
        (
            small(podip="10.1.0.5"),
            "pod-network.podip: '10.1.0.5' is not allowed: must be an address and a prefix length",
        ),
        (small(podip="10.1.0.5/33"), "prefix length up to 32"),
        (small(podip="fd00::1/64"), "must be an IPv4 address"),
        (small(podip=["10.1.0.5/24"]), "pod-network.podip"),
        (small(**{"pod-hw-addr": "0a:00"}), "pod-network.pod-hw-addr: '0a:00' is not allowed: must be a MAC address"),
        (small(interface="eth0 up"), "pod-network.interface: 'eth0 up' is not allowed"),
        (small(interface="-batch"), "pod-network.interface"),
        (small(interface="a-name-too-long-x"), "pod-network.interface"),
        (small(**{"tunnel-type": "geneve"}), "pod-network.tunnel-type: 'geneve' is not allowed: must be vxlan"),
        (small(mtu=-1), "pod-network.mtu: '-1' is not allowed: must be a whole number from 0 to 65535"),
        (small(mtu=True), "pod-network.mtu"),
        (small(**{"vxlan-id": 1 << 24}), "pod-network.vxlan-id"),
        (small(dedicated="yes"), "pod-network.dedicated: 'yes' is not allowed: must be true or false"),
        (small(routes={}), "pod-network.routes: '{}' is not allowed: must be a list"),
        (
            small(routes=[{"dst": "1.2.3.0/24", "protocol": "bgp"}]),
            "pod-network.routes[0].protocol: 'bgp' is not allowed",
        ),
        (small(routes=[{}, {"dst": "1.2.3.0/24", "gw": "x"}]), "pod-network.routes[1].gw: 'x'"),
        (small(neighbors=[{"ip": "1.2.3.4"}]), "pod-network.neighbors[0].hw-addr"),
        (small(ipv6={"addresses": ["10.0.0.1/24"]}), "pod-network.ipv6.addresses: '10.0.0.1/24'"),
        (small(ipv6=[1]), "pod-network.ipv6 must be a JSON object"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_and_what_is_allowed(document: object, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(document)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("tunnel_id", [0, 554999, 1 << 24])
def test_a_tunnel_id_that_no_guest_would_derive_is_refused(tunnel_id: int) -> None:
    with pytest.raises(ConfigError, match=f"tunnel id {tunnel_id} is not allowed: 555000 to 16777215"):
        NETWORK.with_tunnel_id(tunnel_id)


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab:/.01 \n", max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dst", "gw", "addresses", "routes", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*to_json(NETWORK), "ipv6", "underlay-mtu"]), _anything))
def test_whatever_is_sent_is_read_or_refused(document: dict[str, object]) -> None:
    with suppress(ConfigError):
        assert from_json(small() | document).interface


_addresses4 = st.binary(min_size=4, max_size=4).map(socket.inet_ntoa)
_addresses6 = st.binary(min_size=16, max_size=16).map(lambda packed: socket.inet_ntop(socket.AF_INET6, packed))
_macs = st.binary(min_size=6, max_size=6).map(lambda b: b.hex(":"))


def _networks(addresses: st.SearchStrategy[str], bits: int) -> st.SearchStrategy[str]:
    return st.builds("{}/{}".format, addresses, st.integers(0, bits))


def _routes(addresses: st.SearchStrategy[str], bits: int) -> st.SearchStrategy[tuple[Route, ...]]:
    protocols, scopes = st.sampled_from(["", *ROUTE_PROTOCOLS]), st.sampled_from(["", "link", "site", "host"])
    route = st.builds(Route, _networks(addresses, bits), addresses | st.just(""), st.just("eth0"), protocols, scopes)
    return st.lists(route, max_size=4).map(tuple)


def _neighbors(addresses: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[Neighbor, ...]]:
    return st.lists(
        st.builds(Neighbor, addresses, _macs, st.just("eth0"), st.sampled_from(NEIGHBOR_STATES)), max_size=3
    ).map(tuple)


_six = st.builds(
    IPv6,
    st.lists(_networks(_addresses6, 128), min_size=1, max_size=2).map(tuple),
    _routes(_addresses6, 128),
    _neighbors(_addresses6),
)


@given(
    st.builds(
        PodNetwork,
        pod_ip=_networks(_addresses4, 32),
        pod_mac=_macs,
        interface=st.just("eth0"),
        worker_ip=_networks(_addresses4, 32),
        mtu=st.integers(68, 65535),
        routes=_routes(_addresses4, 32),
        neighbors=_neighbors(_addresses4),
        pod_index=st.integers(0, 1000),
        vxlan_port=st.integers(1, 65535),
        vxlan_id=st.integers(0, (1 << 24) - 1),
        dedicated=st.booleans(),
        external_via_podvm=st.booleans(),
        underlay_mtu=st.integers(68, 65535),
        ipv6=st.just(IPv6()) | _six,
    )
)
def test_every_network_survives_the_way_to_the_pod_vm(network: PodNetwork) -> None:
    assert from_json(json.loads(json.dumps(to_json(network)))) == network
