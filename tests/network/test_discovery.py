"""Which interface is the primary one, over tables of every kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.podnetwork.discovery import (
    LinkEntry,
    RouteEntry,
    default_route,
    is_default,
    own_address,
    pod_mtu,
    primary_interface,
)
from caa.podnetwork.errors import NoPrimaryInterface

LINKS = [LinkEntry("lo", loopback=True), *(LinkEntry(name) for name in ("eth0", "eth1", "ens5", "enP2p1"))]
NAMES = [link.name for link in LINKS if not link.loopback]
EVERYWHERE = [None, "", "default", "0.0.0.0/0"]
ELSEWHERE = ["10.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1", "169.254.169.254/32", "10.0.0.1"]

_metrics = st.none() | st.integers(0, 4000)
_devices = st.sampled_from([*NAMES, "lo", "gone", None])
_routes = st.lists(
    st.builds(
        RouteEntry,
        st.sampled_from([*EVERYWHERE, *ELSEWHERE]),
        _devices,
        _metrics,
        st.just("10.0.0.1"),
        dead=st.booleans(),
    ),
    max_size=12,
)


def _counts(route: RouteEntry) -> bool:
    return route.destination in EVERYWHERE and route.device in NAMES and not route.dead


@given(_routes)
def test_the_live_default_route_with_the_lowest_metric_wins(routes: list[RouteEntry]) -> None:
    counting = [route for route in routes if _counts(route)]
    if not counting:
        with pytest.raises(NoPrimaryInterface):
            primary_interface(routes, LINKS)
        return
    chosen = default_route(routes, LINKS)
    assert chosen in counting
    assert all((chosen.metric or 0) <= (route.metric or 0) for route in counting)
    # Of equals the first, as in the kernel.
    equals = [route for route in counting if (route.metric or 0) == (chosen.metric or 0)]
    assert chosen == equals[0]


@given(_routes, st.sampled_from(EVERYWHERE))
def test_the_way_a_default_route_is_written_changes_nothing(routes: list[RouteEntry], written: str | None) -> None:
    def answer(table: list[RouteEntry]) -> str:
        try:
            return primary_interface(table, LINKS)
        except NoPrimaryInterface as error:
            return str(error)

    same = [r._replace(destination=written) if r.destination in EVERYWHERE else r for r in routes]
    assert answer(same) == answer(routes)


@given(_routes)
def test_other_routes_and_absent_interfaces_never_matter(routes: list[RouteEntry]) -> None:
    counting = [route for route in routes if _counts(route)]
    if counting:
        assert default_route(routes, LINKS) == default_route(counting, LINKS)


@given(_routes, st.sampled_from(NAMES))
def test_a_better_default_route_takes_over_wherever_it_is_listed(routes: list[RouteEntry], name: str) -> None:
    worse = [route._replace(metric=(route.metric or 0) + 1) for route in routes]
    better = RouteEntry("default", name, 0)
    assert primary_interface([*worse, better], LINKS) == primary_interface([better, *worse], LINKS) == name


def test_a_lower_numbered_interface_with_a_worse_metric_does_not_win() -> None:
    routes = [RouteEntry("default", "eth1", 100), RouteEntry("default", "eth0", 200)]
    assert primary_interface(routes, LINKS) == "eth1"


def test_no_default_route_and_a_dead_one_are_told_apart() -> None:
    with pytest.raises(NoPrimaryInterface, match="no primary interface: there is no default route"):
        primary_interface([RouteEntry("10.0.0.0/8", "eth0")], LINKS)
    with pytest.raises(NoPrimaryInterface, match="no primary interface: the one through eth0 is down"):
        primary_interface([RouteEntry(None, "eth0", dead=True)], LINKS)


def test_half_of_the_world_is_no_default_route() -> None:
    assert not is_default("0.0.0.0/1")
    assert is_default("::/0")


def test_the_address_that_packets_leave_with_is_the_workers() -> None:
    assert own_address(["10.0.0.4/16", "10.0.0.9/16"], "10.0.0.9") == "10.0.0.9/16"
    assert own_address(["10.0.0.4/16", "10.0.0.9/16"], "") == "10.0.0.4/16"
    assert own_address(["10.0.0.4/16"], "192.0.2.1") == "10.0.0.4/16"
    assert own_address([], "") is None


@pytest.mark.parametrize(
    ("pod", "worker", "guest", "expected"),
    [
        (1500, 1500, 1500, 1450),  # the incumbent's figure
        (1450, 1500, 1500, 1450),
        (1400, 1500, 1500, 1400),
        (1500, 1500, 9001, 1450),
        (1500, 9001, 1500, 1450),
        (8951, 9001, 9001, 8951),
        (9001, 9001, 9001, 8951),
        (1500, 9001, 9001, 1500),
        (1500, 1460, 1460, 1410),  # a Google Cloud network as it is by default
    ],
)
def test_the_mtu_is_what_both_ends_carry(pod: int, worker: int, guest: int, expected: int) -> None:
    assert pod_mtu(pod, worker, guest) == expected
