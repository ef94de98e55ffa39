"""What the worker reads over netlink, in our words. The only place that takes pyroute2's messages apart."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from caa.podnetwork.config import Neighbor, Route
from caa.podnetwork.discovery import LinkEntry, RouteEntry
from caa.podnetwork.errors import PodNetworkError

# linux/rtnetlink.h, linux/neighbour.h, linux/if.h, linux/if_addr.h
_MAIN_TABLE, _UNICAST = 254, 1
_NEXTHOP_DEAD, _NEXTHOP_LINKDOWN = 1, 16
_PERMANENT = 0x80
_IFF_UP, _IFF_LOOPBACK = 1, 8
_ADDRESS_SECONDARY, _ADDRESS_DAD_FAILED, _ADDRESS_DEPRECATED = 0x01, 0x08, 0x20
_SCOPE_UNIVERSE = 0
_PROTOCOLS = {2: "kernel", 3: "boot", 4: "static", 16: "dhcp"}
"""Those routes of a pod that its pod VM gets; other ones come from daemons and announcements, which go on there."""
_SCOPES = {0: "", 200: "site", 253: "link", 254: "host", 255: "nowhere"}

# The address of a default route, which netlink leaves out.
_EVERYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - nothing is bound to it


class Link(NamedTuple):
    """A network interface."""

    ifindex: int
    name: str
    mac: str
    mtu: int
    up: bool
    loopback: bool
    kind: str
    """Of a virtual interface, such as "vxlan"; else ""."""
    vxlan_id: int
    vxlan_port: int
    vxlan_remote: str


class FullRoute(NamedTuple):
    """A unicast route of the main table: for the choice of the primary interface, and as the pod VM is to get it."""

    entry: RouteEntry
    route: Route
    protocol_known: bool


@contextmanager
def netlink() -> Iterator[Any]:
    """A netlink connection in the thread's network namespace; what the kernel refuses is a PodNetworkError.

    Only for threads without an asyncio event loop: pyroute2 runs one of its own.
    """
    try:
        with IPRoute() as connection:
            yield connection
    except NetlinkError as error:
        raise PodNetworkError(f"netlink: {error}") from error


def read_links(connection: Any) -> list[Link]:
    return [_link(message) for message in connection.get_links()]


def _link(message: Any) -> Link:
    info = message.get("linkinfo")
    kind = (info.get("kind") if info else None) or ""
    data = info.get("data") if kind == "vxlan" else None
    return Link(
        ifindex=message["index"],
        name=message.get("ifname"),
        mac=message.get("address") or "",
        mtu=message.get("mtu") or 0,
        up=bool(message["flags"] & _IFF_UP),
        loopback=bool(message["flags"] & _IFF_LOOPBACK),
        kind=kind,
        vxlan_id=(data.get("vxlan_id") if data else None) or 0,
        vxlan_port=(data.get("vxlan_port") if data else None) or 0,
        vxlan_remote=(data.get("vxlan_group") if data else None) or "",
    )


def read_addresses(connection: Any, index: int, family: socket.AddressFamily) -> list[str]:
    """The prefixes of the interface that others can reach it by, in the kernel's order, secondary ones last."""
    found = []
    # A kernel without IPv6 answers for IPv4 when asked for it.
    for message in _of_family(connection.get_addr(family=family, index=index), family):
        flags = message.get("flags") or message["flags"]
        # The flag of a secondary IPv4 address means a temporary one with IPv6.
        secondary = bool(flags & _ADDRESS_SECONDARY)
        if family == socket.AF_INET6 and (
            secondary or message["scope"] != _SCOPE_UNIVERSE or flags & (_ADDRESS_DAD_FAILED | _ADDRESS_DEPRECATED)
        ):
            continue
        # On a point-to-point interface the address is the peer's and "local" is ours.
        address = message.get("local") or message.get("address")
        found.append((secondary, f"{address}/{message['prefixlen']}"))
    return [prefix for _, prefix in sorted(found, key=lambda item: item[0])]


def read_routes(connection: Any, links: list[Link], family: socket.AddressFamily) -> list[FullRoute]:
    """Unicast routes of the main table, sorted by destination, prefix length and metric, as the incumbent has them."""
    names = {link.ifindex: link.name for link in links}
    everywhere = _EVERYWHERE[family]
    found = []
    for message in _of_family(connection.get_routes(family=family, table=_MAIN_TABLE), family):
        if message["type"] != _UNICAST or (message.get("table") or message["table"]) != _MAIN_TABLE:
            continue
        hops = message.get("multipath")
        hop = next((hop for hop in hops if not _dead(hop)), hops[0]) if hops else message
        device = names.get(hop["oif"] if hops else message.get("oif"))
        gateway = str(hop.get("gateway") or "")
        destination, length = message.get("dst"), message["dst_len"]
        metric = message.get("priority")
        entry = RouteEntry(
            destination=f"{destination}/{length}" if destination else None,
            device=device,
            metric=metric,
            gateway=gateway,
            source=message.get("prefsrc") or "",
            dead=_dead(hop),
        )
        route = Route(
            destination=f"{destination or everywhere}/{length}",
            gateway=gateway,
            device=device or "",
            protocol=_PROTOCOLS.get(message["proto"], ""),
            scope=_SCOPES.get(message["scope"], ""),
        )
        key = (socket.inet_pton(family, destination or everywhere), length, metric or 0)
        found.append((key, FullRoute(entry, route, message["proto"] in _PROTOCOLS)))
    return [route for _, route in sorted(found, key=lambda item: item[0])]


def _of_family(messages: Iterable[Any], family: socket.AddressFamily) -> Iterator[Any]:
    return (message for message in messages if message["family"] == family)


def _dead(hop: Any) -> bool:
    return bool(hop["flags"] & (_NEXTHOP_DEAD | _NEXTHOP_LINKDOWN))


def read_permanent_neighbors(connection: Any, link: Link, family: socket.AddressFamily) -> list[Neighbor]:
    """The entries of the neighbour table that somebody set for good, not those learned."""
    return [
        Neighbor(message.get("dst"), message.get("lladdr"), link.name, "permanent")
        for message in _of_family(connection.get_neighbours(family=family, ifindex=link.ifindex), family)
        if message["state"] & _PERMANENT and message["ifindex"] == link.ifindex and message.get("lladdr")
    ]


def link_entries(links: list[Link]) -> list[LinkEntry]:
    return [LinkEntry(link.name, link.loopback) for link in links]
