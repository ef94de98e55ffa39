"""Which interface a namespace reaches the world by, and how large a packet may be. Pure, standard library only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from caa.podnetwork.errors import NoPrimaryInterface

VXLAN_OVERHEAD = 50
"""Bytes that a frame inside VXLAN over IPv4 adds to the packet it holds: IPv4 20, UDP 8, VXLAN 8, Ethernet 14."""

# The ways in which netlink, `ip` and the incumbent's JSON write "to anywhere"; absent is one more.
_EVERYWHERE = frozenset(("", "default", "0.0.0.0/0", "0/0", "::/0"))


class RouteEntry(NamedTuple):
    """A unicast route of the main table, as much of it as matters here."""

    destination: str | None
    """As it was reported: None, "", "default" and "0.0.0.0/0" are the same."""
    device: str | None
    metric: int | None = None
    """None, as Linux reports 0: the best."""
    gateway: str = ""
    source: str = ""
    """The address that packets on this route leave with, if the route says."""
    dead: bool = False
    """Its interface is down or has no carrier."""


class LinkEntry(NamedTuple):
    """A network interface."""

    name: str
    loopback: bool = False


def is_default(destination: str | None) -> bool:
    """Whether a route with this destination is a default route."""
    return destination is None or destination.strip() in _EVERYWHERE


def default_route(routes: Iterable[RouteEntry], links: Iterable[LinkEntry]) -> RouteEntry:
    """The default route that the kernel uses: of those through an interface that is there, the lowest metric.

    Of several with the same metric the first one listed, as in the kernel. Raises NoPrimaryInterface.
    """
    names = {link.name for link in links if not link.loopback}
    candidates = [route for route in routes if is_default(route.destination) and route.device in names]
    usable = [route for route in candidates if not route.dead]
    if not usable:
        why = f"the one through {candidates[0].device} is down" if candidates else "there is no default route"
        raise NoPrimaryInterface(f"no primary interface: {why}")
    return min(usable, key=lambda route: route.metric or 0)


def primary_interface(routes: Iterable[RouteEntry], links: Iterable[LinkEntry]) -> str:
    """Name of the interface of `default_route`. Raises NoPrimaryInterface."""
    device = default_route(routes, links).device
    assert device is not None
    return device


def own_address(prefixes: Collection[str], source: str) -> str | None:
    """The prefix this machine is known by on an interface that has `prefixes`: the one of `source`, else the first."""
    preferred = [prefix for prefix in prefixes if source and prefix.partition("/")[0] == source]
    return next(iter(preferred or prefixes), None)


def pod_mtu(pod: int, worker_underlay: int, guest_underlay: int) -> int:
    """Bytes the pod's interface in the pod VM may send at once, so that no packet of the tunnel is fragmented.

    The underlay is what both ends carry: with 1500 bytes, this is the incumbent's 1450. Jumbo frames count only when
    both ends have them, and the CNI plugin gave the pod so large an MTU.
    """
    return min(pod, min(worker_underlay, guest_underlay) - VXLAN_OVERHEAD)
