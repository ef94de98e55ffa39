"""The worker's side, reading: what a pod's network is like, and where its tunnel leaves the node.

Calls block for milliseconds, so they are for a thread without event loop, whose network namespace is the worker's.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import NamedTuple

from caa.podnetwork.config import VXLAN_PORT, IPv6, PodNetwork, Route
from caa.podnetwork.discovery import default_route, own_address
from caa.podnetwork.errors import NoPrimaryInterface, PodNetworkError
from caa.podnetwork.metadataaddress import METADATA_ADDRESSES
from caa.podnetwork.namespace import inside, opened
from caa.podnetwork.netlink import (
    FullRoute,
    Link,
    link_entries,
    netlink,
    read_addresses,
    read_links,
    read_permanent_neighbors,
    read_routes,
)

_log = logging.getLogger(__name__)


class TunnelSettings(NamedTuple):
    """What an operator chooses about tunnels; the same for all pods of the node."""

    host_interface: str = ""
    """The worker's interface that tunnels leave by; "" for the one with the default route."""
    vxlan_port: int = VXLAN_PORT
    external_network_via_podvm: bool = False
    pod_subnet_cidrs: tuple[str, ...] = ()
    """What goes through the tunnel although the default route does not; only with external_network_via_podvm."""


class _Underlay(NamedTuple):
    worker_ip: str
    mtu: int
    dedicated: bool


def inspect(netns_path: str, settings: TunnelSettings) -> PodNetwork:
    """The pod's network as it is in its namespace, for a tunnel that still needs its id.

    Raises NoPrimaryInterface (of the worker or the pod), NamespaceGone, or PodNetworkError when the pod has not exactly
    one IPv4 address.
    """
    if not netns_path:
        raise PodNetworkError("the sandbox has no network namespace of its own (a pod on the host's network?)")
    underlay = _inspect_underlay(settings)
    with opened(netns_path) as namespace:
        network = inside(namespace, lambda: _inspect_pod(netns_path, underlay))
    network = network._replace(vxlan_port=settings.vxlan_port, external_via_podvm=settings.external_network_via_podvm)
    if not network.external_via_podvm:
        return network
    # Outside, the cloud's own service would answer, user data and all.
    return _with_pod_subnets(network, (*settings.pod_subnet_cidrs, *METADATA_ADDRESSES))


def _inspect_underlay(settings: TunnelSettings) -> _Underlay:
    with netlink() as connection:
        links = read_links(connection)
        routes = read_routes(connection, links, socket.AF_INET)
        try:
            primary = default_route([route.entry for route in routes], link_entries(links))
        except NoPrimaryInterface as error:
            raise NoPrimaryInterface(f"the worker node has {error}") from None
        name = settings.host_interface or primary.device
        link = next((link for link in links if link.name == name), None)
        if link is None:
            raise PodNetworkError(f"HOST_INTERFACE: the worker node has no network interface {name!r}")
        prefixes = read_addresses(connection, link.ifindex, socket.AF_INET)
    dedicated = name != primary.device
    worker_ip = own_address(prefixes, "" if dedicated else primary.source)
    if worker_ip is None:
        raise PodNetworkError(f"the worker node's interface {name} has no IPv4 address")
    if len(prefixes) > 1:
        _log.info("interface %s has %d IPv4 addresses; tunnels use %s", name, len(prefixes), worker_ip)
    return _Underlay(worker_ip, link.mtu, dedicated)


def _inspect_pod(path: str, underlay: _Underlay) -> PodNetwork:
    with netlink() as connection:
        links = read_links(connection)
        routes = read_routes(connection, links, socket.AF_INET)
        try:
            primary = default_route([route.entry for route in routes], link_entries(links))
        except NoPrimaryInterface as error:
            raise NoPrimaryInterface(f"the pod's network namespace {path} has {error}") from None
        link = next(link for link in links if link.name == primary.device)
        prefixes = read_addresses(connection, link.ifindex, socket.AF_INET)
        if len(prefixes) != 1:
            found = "no IPv4 address" if not prefixes else f"more than one IPv4 address ({', '.join(prefixes)})"
            raise PodNetworkError(f"the pod's interface {link.name} has {found}; exactly one can be carried")
        neighbors = read_permanent_neighbors(connection, link, socket.AF_INET)
        six = read_addresses(connection, link.ifindex, socket.AF_INET6)
        ipv6 = IPv6()
        if six:
            ipv6 = IPv6(
                addresses=tuple(six),
                routes=_carried(read_routes(connection, links, socket.AF_INET6), link),
                neighbors=tuple(read_permanent_neighbors(connection, link, socket.AF_INET6)),
            )
    return PodNetwork(
        pod_ip=prefixes[0],
        pod_mac=link.mac,
        interface=link.name,
        worker_ip=underlay.worker_ip,
        mtu=link.mtu,
        routes=_carried(routes, link),
        neighbors=tuple(neighbors),
        dedicated=underlay.dedicated,
        underlay_mtu=underlay.mtu,
        ipv6=ipv6,
    )


def _carried(routes: list[FullRoute], link: Link) -> tuple[Route, ...]:
    """The routes the pod VM is to have: through the interface it will have, made by people or by the kernel.

    Link-local networks are not among them, for every interface makes its own.
    """
    return tuple(
        found.route
        for found in routes
        if found.protocol_known and found.route.device == link.name and found.route.destination != "fe80::/64"
    )


def _with_pod_subnets(network: PodNetwork, cidrs: tuple[str, ...]) -> PodNetwork:
    """The network with a route to each CIDR through the pod's gateway; a bad CIDR is logged and skipped."""
    subnets: dict[int, list[str]] = {4: [], 6: []}
    for text in cidrs:
        try:
            subnet = ipaddress.ip_network(text.strip())
        except ValueError as error:
            _log.error("POD_SUBNET_CIDRS: %r is skipped, it is not a network's prefix: %s", text, error)
            continue
        subnets[subnet.version].append(str(subnet))
    ipv6 = network.ipv6
    return network._replace(
        routes=network.routes + _through_gateway(network.routes, "0.0.0.0/0", subnets[4]),
        ipv6=ipv6._replace(routes=ipv6.routes + _through_gateway(ipv6.routes, "::/0", subnets[6])),
    )


def _through_gateway(routes: tuple[Route, ...], everywhere: str, subnets: list[str]) -> tuple[Route, ...]:
    default = next((route for route in routes if route.destination == everywhere), None)
    if default is None:
        return ()
    return tuple(Route(subnet, default.gateway, default.device) for subnet in subnets)
