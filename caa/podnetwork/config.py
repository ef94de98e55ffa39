"""The `pod-network` object: what the worker tells the pod VM about the pod's network. Pure, standard library only.

Keys, their order and what is omitted are those of the incumbent's worker, so that either side may be the incumbent's.
What this project adds comes last and only when it says something: an incumbent's guest ignores keys it does not know,
and an incumbent's worker sends none of them.

Named tuples, not dataclasses: importing those takes the pod VM longer than setting up its network.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from caa.podnetwork.errors import ConfigError

FIRST_TUNNEL_ID = 555000
"""The tunnel id (VNI) of index 0, as with the incumbent."""
LAST_TUNNEL_ID = (1 << 24) - 1  # 24 bits in the VXLAN header
VXLAN_PORT = 4789
"""UDP, assigned by IANA (RFC 7348)."""
ETHERNET_MTU = 1500
"""Bytes; what an underlay carries of which nothing else is said."""
MAX_MTU = 65535  # the length field of an IPv4 header

# The protocols of routes that Linux and DHCP clients make for an interface; a guest refuses any other.
ROUTE_PROTOCOLS = ("static", "boot", "dhcp", "kernel")
ROUTE_SCOPES = ("universe", "site", "link", "host", "nowhere")
NEIGHBOR_STATES = ("none", "incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent")

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
# What Linux takes as an interface's name (15 bytes, no slash or space), less what a batch of `ip` commands gives a
# meaning of its own.
_INTERFACE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.@+=,][A-Za-z0-9_.@+=,:-]{0,14}")

_Item = TypeVar("_Item")


class Route(NamedTuple):
    """A route of the pod. `destination` is a prefix, `gateway` an address or "" for none."""

    destination: str
    gateway: str
    device: str
    protocol: str = ""
    """One of ROUTE_PROTOCOLS, or "" if not said."""
    scope: str = ""
    """One of ROUTE_SCOPES but "universe", which is ""."""


class Neighbor(NamedTuple):
    """An entry of the pod's neighbour table."""

    address: str
    mac: str
    device: str
    state: str = "permanent"


class IPv6(NamedTuple):
    """What a pod has beside IPv4. Not known to the incumbent, on either side."""

    addresses: tuple[str, ...] = ()
    """Prefixes of global addresses, such as "fd00::5/64"."""
    routes: tuple[Route, ...] = ()
    neighbors: tuple[Neighbor, ...] = ()


class PodNetwork(NamedTuple):
    """One pod's network and the tunnel that carries it. Addresses, prefixes and MACs are text."""

    pod_ip: str
    """Prefix, such as "10.244.0.19/24"."""
    pod_mac: str
    interface: str
    """Name of the pod's interface, the same in both namespaces."""
    worker_ip: str
    """Prefix: the worker's address on the interface the tunnel leaves by, and that interface's network."""
    mtu: int
    """Bytes; of the pod's interface as the CNI plugin made it."""
    routes: tuple[Route, ...] = ()
    neighbors: tuple[Neighbor, ...] = ()
    pod_index: int = 0
    vxlan_port: int = VXLAN_PORT
    vxlan_id: int = 0
    dedicated: bool = False
    """The tunnel uses the second interface of the pod VM, not the first."""
    external_via_podvm: bool = False
    """Traffic that leaves the cluster goes through an interface of the pod VM, not through the tunnel."""
    underlay_mtu: int = ETHERNET_MTU
    """Bytes; of the interface the tunnel leaves the worker by."""
    ipv6: IPv6 = IPv6()

    @property
    def tunnel_id(self) -> int:
        """The VNI on the wire. Without one of its own, the incumbent derives it from the index."""
        return self.vxlan_id or FIRST_TUNNEL_ID + self.pod_index

    def with_tunnel_id(self, tunnel_id: int) -> PodNetwork:
        """The same network carried under `tunnel_id`, from FIRST_TUNNEL_ID on. Raises ConfigError."""
        if not FIRST_TUNNEL_ID <= tunnel_id <= LAST_TUNNEL_ID:
            raise ConfigError(f"tunnel id {tunnel_id} is not allowed: {FIRST_TUNNEL_ID} to {LAST_TUNNEL_ID}")
        return self._replace(vxlan_id=tunnel_id, pod_index=tunnel_id - FIRST_TUNNEL_ID)


def address_of(prefix: str) -> str:
    """ "10.0.0.1" of "10.0.0.1/16"."""
    return prefix.partition("/")[0]


def to_json(network: PodNetwork) -> dict[str, object]:
    """The object for apf.json, keys in the order in which they are to be written."""
    document: dict[str, object] = {
        "podip": network.pod_ip,
        "pod-hw-addr": network.pod_mac,
        "interface": network.interface,
        "worker-node-ip": network.worker_ip,
        "tunnel-type": "vxlan",
        # Go writes an empty list as null.
        "routes": _routes_json(network.routes) or None,
        "neighbors": _neighbors_json(network.neighbors) or None,
        "mtu": network.mtu,
        "index": network.pod_index,
    }
    if network.vxlan_port:
        document["vxlan-port"] = network.vxlan_port
    if network.vxlan_id:
        document["vxlan-id"] = network.vxlan_id
    document |= {"dedicated": network.dedicated, "external-net-via-pod-vm": network.external_via_podvm}
    if network.underlay_mtu != ETHERNET_MTU:
        document["underlay-mtu"] = network.underlay_mtu
    if network.ipv6.addresses:
        document["ipv6"] = {
            "addresses": list(network.ipv6.addresses),
            "routes": _routes_json(network.ipv6.routes),
            "neighbors": _neighbors_json(network.ipv6.neighbors),
        }
    return document


def _routes_json(routes: tuple[Route, ...]) -> list[dict[str, str]]:
    documents = []
    for route in routes:
        document = {"dst": route.destination, "gw": route.gateway, "dev": route.device}
        if route.protocol:
            document["protocol"] = route.protocol
        if route.scope:
            document["scope"] = route.scope
        documents.append(document)
    return documents


def _neighbors_json(neighbors: tuple[Neighbor, ...]) -> list[dict[str, str]]:
    return [{"ip": n.address, "hw-addr": n.mac, "dev": n.device, "state": n.state} for n in neighbors]


def from_json(document: object) -> PodNetwork:
    """The object a worker sent. Keys match whatever their case; unknown ones are ignored. Raises ConfigError."""
    read = _Reader("pod-network", document)
    kind = read.text("tunnel-type")
    if kind not in ("", "vxlan"):
        raise read.refuse("tunnel-type", kind, "vxlan")
    interface = read.interface("interface")
    ipv6 = _Reader("pod-network.ipv6", read.get("ipv6") or {})
    return PodNetwork(
        pod_ip=read.prefix("podip"),
        pod_mac=read.mac("pod-hw-addr"),
        interface=interface,
        worker_ip=read.prefix("worker-node-ip"),
        mtu=read.number("mtu", 0, MAX_MTU) or ETHERNET_MTU,
        routes=read.each("routes", lambda item: _route(item, interface, socket.AF_INET)),
        neighbors=read.each("neighbors", lambda item: _neighbor(item, interface, socket.AF_INET)),
        pod_index=read.number("index", 0, LAST_TUNNEL_ID - FIRST_TUNNEL_ID),
        vxlan_port=read.number("vxlan-port", 0, 65535) or VXLAN_PORT,
        vxlan_id=read.number("vxlan-id", 0, LAST_TUNNEL_ID),
        dedicated=read.flag("dedicated"),
        external_via_podvm=read.flag("external-net-via-pod-vm"),
        underlay_mtu=read.number("underlay-mtu", 0, MAX_MTU) or ETHERNET_MTU,
        ipv6=IPv6(
            addresses=tuple(ipv6.check_prefix("addresses", text, socket.AF_INET6) for text in ipv6.items("addresses")),
            routes=ipv6.each("routes", lambda item: _route(item, interface, socket.AF_INET6)),
            neighbors=ipv6.each("neighbors", lambda item: _neighbor(item, interface, socket.AF_INET6)),
        ),
    )


def _route(read: _Reader, interface: str, family: int) -> Route:
    protocol, scope = read.choice("protocol", ROUTE_PROTOCOLS), read.choice("scope", ROUTE_SCOPES)
    # The incumbent writes the zero prefix, which is the default route, as an empty text.
    everything = "0.0.0.0/0" if family == socket.AF_INET else "::/0"
    destination = read.text("dst")
    return Route(
        destination=read.check_prefix("dst", destination, family) if destination else everything,
        gateway=read.address("gw", family, required=False),
        device=(read.text("dev") and read.interface("dev")) or interface,
        protocol=protocol,
        scope="" if scope == "universe" else scope,
    )


def _neighbor(read: _Reader, interface: str, family: int) -> Neighbor:
    return Neighbor(
        address=read.address("ip", family),
        mac=read.mac("hw-addr"),
        device=(read.text("dev") and read.interface("dev")) or interface,
        state=read.choice("state", NEIGHBOR_STATES) or "none",
    )


class _Reader:
    """Reads one JSON object; every error names where the value stands."""

    def __init__(self, where: str, document: object) -> None:
        if not isinstance(document, dict):
            raise ConfigError(f"{where} must be a JSON object")
        self._where = where
        self._given: dict[str, Any] = {str(key).lower(): value for key, value in document.items()}

    def get(self, key: str) -> Any:
        return self._given.get(key)

    def refuse(self, key: str, value: object, allowed: str) -> ConfigError:
        return ConfigError(f"{self._where}.{key}: {str(value)[:60]!r} is not allowed: must be {allowed}")

    def text(self, key: str) -> str:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.refuse(key, value, "text")
        return value or ""

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.text(key)
        if value and value not in allowed:
            raise self.refuse(key, value, "one of " + ", ".join(allowed))
        return value

    def number(self, key: str, lowest: int, highest: int) -> int:
        value = self.get(key)
        if value is None:
            return 0
        if type(value) is not int or not lowest <= value <= highest:
            raise self.refuse(key, value, f"a whole number from {lowest} to {highest}")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return bool(value)

    def interface(self, key: str) -> str:
        value = self.text(key)
        if not _INTERFACE.fullmatch(value):
            raise self.refuse(key, value, "the name of a network interface")
        return value

    def mac(self, key: str) -> str:
        value = self.text(key)
        if not _MAC.fullmatch(value):
            raise self.refuse(key, value, "a MAC address such as 0a:58:0a:84:03:ce")
        return value.lower()

    def address(self, key: str, family: int, *, required: bool = True) -> str:
        value = self.text(key)
        if not value and not required:
            return ""
        return self._canonical(key, value, value, family)

    def prefix(self, key: str) -> str:
        return self.check_prefix(key, self.text(key), socket.AF_INET)

    def check_prefix(self, key: str, value: object, family: int) -> str:
        """An address and a prefix length, in their usual writing; the bits of the host stay."""
        address, slash, length = value.partition("/") if isinstance(value, str) else ("", "", "")
        canonical = self._canonical(key, value, address, family)
        longest = 32 if family == socket.AF_INET else 128
        if not slash or not (length.isascii() and length.isdecimal()) or int(length) > longest:
            raise self.refuse(key, value, f"an address and a prefix length up to {longest}")
        return f"{canonical}/{int(length)}"

    def _canonical(self, key: str, value: object, address: str, family: int) -> str:
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, address))
        except (OSError, ValueError):
            name = "IPv4" if family == socket.AF_INET else "IPv6"
            raise self.refuse(key, value, f"an {name} address") from None

    def items(self, key: str) -> list[Any]:
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self.refuse(key, value, "a list")
        return value or []

    def each(self, key: str, make: Callable[[_Reader], _Item]) -> tuple[_Item, ...]:
        items = enumerate(self.items(key))
        return tuple(make(_Reader(f"{self._where}.{key}[{place}]", item)) for place, item in items)
