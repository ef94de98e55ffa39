"""What the pod VM decides, without a network: commands for what is missing, none for what is right."""

from __future__ import annotations

import pytest

from caa.podnetwork.config import IPv6, Neighbor, PodNetwork, Route
from caa.podnetwork.discovery import RouteEntry
from caa.podnetwork.iproute import Interface, Present
from caa.podnetwork.podplan import External, find_external, link_local, pod_commands, right_device, wrong_devices

NETWORK = PodNetwork(
    pod_ip="10.128.0.2/24",
    pod_mac="0a:58:0a:84:03:ce",
    interface="eth0",
    worker_ip="10.10.0.1/16",
    mtu=1500,
    routes=(Route("0.0.0.0/0", "10.128.0.1", "eth0", "boot"), Route("10.128.0.0/24", "", "eth0", "kernel", "link")),
    neighbors=(Neighbor("10.128.0.1", "0a:58:0a:80:00:01", "eth0"),),
    ipv6=IPv6(("fd00::2/64",), (Route("::/0", "fe80::1", "eth0"), Route("fd00::/64", "", "eth0", "kernel"))),
).with_tunnel_id(555002)

LOOPBACK = Interface("lo", "00:00:00:00:00:00", 65536, True, True, "", 0, 0, "", ("127.0.0.1/8",), ("::1/128",))
DEVICE = Interface(
    "eth0",
    "0a:58:0a:84:03:ce",
    1450,
    True,
    False,
    "vxlan",
    555002,
    4789,
    "10.10.0.1",
    ("10.128.0.2/24",),
    ("fe80::858:aff:fe84:3ce/64", "fd00::2/64"),
)
RIGHT = Present(
    (LOOPBACK, DEVICE),
    (RouteEntry("default", "eth0", gateway="10.128.0.1"), RouteEntry("10.128.0.0/24", "eth0")),
    (RouteEntry("default", "eth0", 1024, "fe80::1"), RouteEntry("fd00::/64", "eth0", 1024)),
    frozenset({("10.128.0.1", "0a:58:0a:80:00:01", "eth0")}),
)


def with_device(**changes: object) -> Present:
    return RIGHT._replace(interfaces=(LOOPBACK, DEVICE._replace(**changes)))  # type: ignore[arg-type]


def test_what_is_right_needs_nothing() -> None:
    assert pod_commands(NETWORK, 1450, RIGHT) == []
    assert wrong_devices(NETWORK, RIGHT) == []


def test_an_empty_namespace_gets_everything_and_routes_without_gateway_first() -> None:
    assert pod_commands(NETWORK, 1450, Present()) == [
        "link set lo up",
        "link set ppvni555002 name eth0",
        "link set eth0 addrgenmode none",
        "link set eth0 address 0a:58:0a:84:03:ce",
        "link set eth0 mtu 1450",
        "addr add 10.128.0.2/24 dev eth0 noprefixroute",
        "addr add fe80::858:aff:fe84:3ce/64 dev eth0 nodad",
        "addr add fd00::2/64 dev eth0 nodad noprefixroute",
        "link set eth0 up",
        "route replace 10.128.0.0/24 dev eth0 proto kernel",
        "route replace 0.0.0.0/0 via 10.128.0.1 onlink dev eth0 proto boot",
        "route replace fd00::/64 dev eth0 proto kernel",
        "route replace ::/0 via fe80::1 onlink dev eth0",
        "neigh replace 10.128.0.1 lladdr 0a:58:0a:80:00:01 dev eth0 nud permanent",
    ]


@pytest.mark.parametrize(
    ("present", "commands"),
    [
        (with_device(up=False), ["link set eth0 up"]),
        (with_device(mtu=1500), ["link set eth0 mtu 1450"]),
        (with_device(mac="02:00:00:00:00:01"), ["link set eth0 address 0a:58:0a:84:03:ce"]),
        (with_device(ipv4=()), ["addr add 10.128.0.2/24 dev eth0 noprefixroute"]),
        (RIGHT._replace(interfaces=(LOOPBACK._replace(up=False), DEVICE)), ["link set lo up"]),
        (RIGHT._replace(routes=RIGHT.routes[:1]), ["route replace 10.128.0.0/24 dev eth0 proto kernel"]),
        (
            RIGHT._replace(routes=(RIGHT.routes[0]._replace(gateway="10.128.0.9"), RIGHT.routes[1])),
            ["route replace 0.0.0.0/0 via 10.128.0.1 onlink dev eth0 proto boot"],
        ),
        (
            RIGHT._replace(neighbors=frozenset()),
            ["neigh replace 10.128.0.1 lladdr 0a:58:0a:80:00:01 dev eth0 nud permanent"],
        ),
    ],
)
def test_only_what_is_missing_or_wrong_is_done(present: Present, commands: list[str]) -> None:
    assert pod_commands(NETWORK, 1450, present) == commands


@pytest.mark.parametrize(
    "change", [{"vxlan_id": 555003}, {"vxlan_port": 8472}, {"vxlan_remote": "10.10.0.2"}, {"kind": "veth"}]
)
def test_a_device_that_leads_elsewhere_is_wrong(change: dict[str, object]) -> None:
    present = with_device(**change)
    assert right_device(NETWORK, present) is None
    # One that is no tunnel is somebody else's.
    assert wrong_devices(NETWORK, present) == ([] if "kind" in change else ["eth0"])


def test_a_device_that_was_not_finished_is_in_the_way() -> None:
    unfinished = DEVICE._replace(name="ppvni555002")
    assert wrong_devices(NETWORK, Present((LOOPBACK, unfinished))) == ["ppvni555002"]
    assert wrong_devices(NETWORK, Present((LOOPBACK, DEVICE, unfinished))) == ["ppvni555002"]


def test_with_the_default_route_outside_the_tunnels_own_is_left_out() -> None:
    commands = pod_commands(NETWORK, 1450, RIGHT._replace(routes=(), routes6=()), default_outside=True)
    assert commands == [
        "route replace 10.128.0.0/24 dev eth0 proto kernel",
        "route replace fd00::/64 dev eth0 proto kernel",
    ]


def test_of_two_routes_to_one_place_the_first_is_taken() -> None:
    worse = Route("0.0.0.0/0", "10.128.0.9", "eth0", "boot")
    network = NETWORK._replace(routes=(*NETWORK.routes, worse))
    assert pod_commands(network, 1450, RIGHT) == []
    assert sum("0.0.0.0/0" in line for line in pod_commands(network, 1450, Present())) == 1


def test_what_belongs_to_an_interface_that_is_not_carried_is_left_out() -> None:
    network = NETWORK._replace(
        routes=(*NETWORK.routes, Route("172.30.0.0/16", "", "net1", "kernel", "link")),
        neighbors=(*NETWORK.neighbors, Neighbor("172.30.0.9", "0a:58:0a:80:00:09", "net1")),
    )
    assert pod_commands(network, 1450, RIGHT) == []


def test_the_link_local_address_is_that_of_the_mac() -> None:
    assert link_local("0a:58:0a:84:03:ce") == "fe80::858:aff:fe84:3ce"


def card(name: str, *prefixes: str) -> Interface:
    return Interface(name, "02:00:00:00:00:01", 1500, True, False, "", 0, 0, "", prefixes, ())


PRIMARY = RouteEntry("default", "eth0", gateway="10.0.0.1")


@pytest.mark.parametrize(
    ("cards", "routes", "expected"),
    [
        # A default route of its own.
        (
            [card("eth1", "10.1.0.9/24")],
            [RouteEntry("default", "eth1", 200, "10.1.0.1")],
            External("eth1", "10.1.0.9/24", "10.1.0.1"),
        ),
        # In the primary card's network, through the same gateway.
        ([card("ens6", "10.0.0.9/24")], [], External("ens6", "10.0.0.9/24", "10.0.0.1")),
        # No way out, no address, or no card.
        ([card("eth1", "10.1.0.9/24")], [RouteEntry("10.1.0.0/24", "eth1")], None),
        ([card("eth1")], [RouteEntry("default", "eth1", 200, "10.1.0.1")], None),
        ([card("docker0", "10.0.0.9/24"), card("br-1", "10.0.0.8/24"), card("tunl0", "10.0.0.7/24")], [], None),
        ([], [], None),
    ],
)
def test_the_second_card_is_the_first_with_a_way_out(
    cards: list[Interface], routes: list[RouteEntry], expected: External | None
) -> None:
    host = Present((LOOPBACK, card("eth0", "10.0.0.4/24"), *cards), (PRIMARY, *routes))
    assert find_external(host, PRIMARY, "eth0") == expected


def test_the_card_that_the_tunnel_leaves_by_is_not_given_away() -> None:
    host = Present((LOOPBACK, card("eth0", "10.0.0.4/24"), card("eth1", "10.0.0.9/24")), (PRIMARY,))
    assert find_external(host, PRIMARY, "eth1") is None
