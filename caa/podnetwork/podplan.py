"""What the pod VM has to do for the pod's end of the tunnel, given what is there already. Pure, standard library only.

The answers are lines for a batch of `ip` commands; names and addresses in them were checked by `config.from_json`.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from caa.podnetwork.config import PodNetwork, Route, address_of
from caa.podnetwork.discovery import RouteEntry, is_default
from caa.podnetwork.iproute import Interface, Present

# Interfaces that other programs of a VM make; none of them is a network card. The incumbent's list.
_NOT_CARDS = ("veth", "lo", "docker", "podman", "br-", "cni", "tunl", "tun", "tap")


class External(NamedTuple):
    """The card that carries what leaves the cluster."""

    interface: str
    prefix: str
    gateway: str


def first_name(network: PodNetwork) -> str:
    """The device's name until it has its last one, which an interface of the VM itself may have too."""
    return f"ppvni{network.tunnel_id}"


def right_device(network: PodNetwork, pod: Present) -> Interface | None:
    """The tunnel's device as it is in the pod's namespace, if it leads where it must."""
    found = pod.interface(network.interface)
    wanted = ("vxlan", network.tunnel_id, network.vxlan_port, address_of(network.worker_ip))
    if found is None or (found.kind, found.vxlan_id, found.vxlan_port, found.vxlan_remote) != wanted:
        return None
    return found


def wrong_devices(network: PodNetwork, pod: Present) -> list[str]:
    """Names of devices that stand in the way: the pod's interface leading elsewhere, or one not finished."""
    names = [first_name(network)] if right_device(network, pod) else [network.interface, first_name(network)]
    return [interface.name for interface in pod.interfaces if interface.name in names and interface.kind == "vxlan"]


def create_device(network: PodNetwork, namespace: str) -> str:
    """The command, for the VM's own namespace: there the device keeps its socket."""
    # Learning off: there is one peer, and a frame must not be able to name another.
    return (
        f"link add {first_name(network)} netns {namespace} type vxlan id {network.tunnel_id} "
        f"remote {address_of(network.worker_ip)} dstport {network.vxlan_port} nolearning"
    )


def pod_commands(network: PodNetwork, mtu: int, pod: Present, *, default_outside: bool = False) -> list[str]:
    """The commands, for the pod's namespace, that bring it from `pod` to what `network` says.

    `default_outside`: the default route is through another interface, so the tunnel's own is left out.
    """
    name = network.interface
    device = right_device(network, pod)
    lines = []
    loopback = pod.interface("lo")
    if loopback is None or not loopback.up:
        lines.append("link set lo up")
    if device is None:
        lines.append(f"link set {first_name(network)} name {name}")
        if network.ipv6.addresses:
            # Its link-local address is given below: without the second of waiting for other owners of it, of which
            # there is one, the interface on the worker.
            lines.append(f"link set {name} addrgenmode none")
    if device is None or device.mac != network.pod_mac:
        lines.append(f"link set {name} address {network.pod_mac}")
    if device is None or device.mtu != mtu:
        lines.append(f"link set {name} mtu {mtu}")
    lines += _addresses(network, device)
    if device is None or not device.up:
        lines.append(f"link set {name} up")
    lines += _routes(network.routes, pod.routes, name, default_outside)
    lines += _routes(network.ipv6.routes, pod.routes6, name, default_outside)
    for neighbor in network.neighbors + network.ipv6.neighbors:
        if neighbor.device != name:
            continue
        if neighbor.state != "permanent" or (neighbor.address, neighbor.mac, name) not in pod.neighbors:
            lines.append(f"neigh replace {neighbor.address} lladdr {neighbor.mac} dev {name} nud {neighbor.state}")
    return lines


def _addresses(network: PodNetwork, device: Interface | None) -> list[str]:
    # Without the route to the network that Linux adds by itself: the pod may have none on purpose.
    name = network.interface
    lines = []
    if device is None or network.pod_ip not in device.ipv4:
        lines.append(f"addr add {network.pod_ip} dev {name} noprefixroute")
    if not network.ipv6.addresses:
        return lines
    six = (f"{link_local(network.pod_mac)}/64", *network.ipv6.addresses)
    for prefix in six:
        if device is None or prefix not in device.ipv6:
            # The link-local network is needed on every interface, and no CNI plugin's list has it.
            route = "" if prefix == six[0] else " noprefixroute"
            lines.append(f"addr add {prefix} dev {name} nodad{route}")
    return lines


def _routes(wanted: tuple[Route, ...], present: tuple[RouteEntry, ...], name: str, default_outside: bool) -> list[str]:
    """Those that are missing or wrong; without gateway first, for the gateways are reached through them."""
    have = {(_written(route.destination), route.gateway) for route in present if route.device == name}
    # One route to each place: metrics do not come along, but the best one comes first.
    best: dict[str, Route] = {}
    for route in wanted:
        if route.device == name and not (default_outside and is_default(route.destination)):
            best.setdefault(_written(route.destination), route)
    lines = []
    for written, route in sorted(best.items(), key=lambda item: bool(item[1].gateway)):
        if (written, route.gateway) in have:
            continue
        # On link: the other end of the tunnel is the only place there is, whatever the pod's own network.
        via = f" via {route.gateway} onlink" if route.gateway else ""
        protocol = f" proto {route.protocol}" if route.protocol else ""
        lines.append(f"route replace {route.destination}{via} dev {name}{protocol}")
    return lines


def _written(destination: str | None) -> str:
    """A destination as `ip` writes it: "default", and a host without its prefix length."""
    if is_default(destination) or destination is None:
        return "default"
    return destination.removesuffix("/128" if ":" in destination else "/32")


def link_local(mac: str) -> str:
    """The IPv6 address that an interface with this MAC makes for itself (RFC 4291, appendix A), as `ip` writes it."""
    octets = [int(part, 16) for part in mac.split(":")]
    octets = [octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]]
    return socket.inet_ntop(socket.AF_INET6, bytes([0xFE, 0x80, *([0] * 6), *octets]))


def find_external(host: Present, primary: RouteEntry, underlay: str) -> External | None:
    """The VM's second card, if there is one with an IPv4 address and a way out; never the one the tunnel leaves by."""
    for card in host.interfaces:
        if card.name in (primary.device, underlay) or card.name.startswith(_NOT_CARDS) or not card.ipv4:
            continue
        own = (r.gateway for r in host.routes if r.device == card.name and is_default(r.destination) and r.gateway)
        gateway = next(own, "")
        if not gateway and _same_network(card.ipv4[0], primary.gateway):
            gateway = primary.gateway
        if gateway:
            return External(card.name, card.ipv4[0], gateway)
    return None


def _same_network(prefix: str, address: str) -> bool:
    import ipaddress

    return bool(address) and ipaddress.ip_address(address) in ipaddress.ip_interface(prefix).network


def has_external(network: PodNetwork, pod: Present) -> bool:
    """Whether the pod's namespace has a default route already that is not the tunnel's."""
    return any(is_default(route.destination) and route.device != network.interface for route in pod.routes)


def external_commands(external: External) -> list[str]:
    """The commands, for the pod's namespace, once the card is in it: its address again, and the default route.

    That takes the place of the tunnel's, in one step.
    """
    name = external.interface
    return [
        f"addr add {external.prefix} dev {name}",
        f"link set {name} up",
        f"route replace default via {external.gateway} dev {name} onlink",
    ]
