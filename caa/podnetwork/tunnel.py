"""The worker's end of a tunnel: whether its id is free, building or mending it, and taking it away.

Calls block for milliseconds, so they are for a thread without event loop, whose network namespace is the worker's. One
sandbox's calls must not overlap; those of different sandboxes may.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from caa.podnetwork.config import PodNetwork
from caa.podnetwork.errors import PodNetworkError, TeardownFailed, TunnelIdInUse
from caa.podnetwork.metadataaddress import METADATA_ADDRESSES
from caa.podnetwork.namespace import NamespaceGone, enter, in_new_thread, inside, opened
from caa.podnetwork.netlink import Link, netlink, read_links
from caa.podnetwork.notrack import ensure_notrack, remove_notrack
from caa.podnetwork.redirect import ensure_redirect, ensure_redirect_but, remove_redirect

DEVICE = "vxlan1"
"""Name of the tunnel's end inside the pod's namespace, the incumbent's."""


_DEAD_ENDS = {
    f"{address}/128" if ":" in address else f"{address}/32": socket.AF_INET6 if ":" in address else socket.AF_INET
    for address in METADATA_ADDRESSES
}
# A kernel or namespace without IPv6: nothing is routed there either.
_NO_IPV6 = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EACCES, errno.EPERM)


def _first_name(tunnel_id: int) -> str:
    """A name that nothing else has. Older kernels look in the worker's namespace too whether a new device's is free."""
    return f"ppvni{tunnel_id}"


def usable(tunnel_id: int, port: int) -> bool:
    """Whether a tunnel could be built with this id: the kernel is asked by making a device for a moment.

    Nothing else is a safe answer, for a device that was moved to another namespace holds its id and shows nowhere here.
    Raises PodNetworkError if no id could be, because the UDP port is taken.
    """
    name = _first_name(tunnel_id)
    with netlink() as connection:
        if not _create(connection, tunnel_id, port):
            return False
        index = _find(read_links(connection), name).ifindex
        try:
            connection.link("set", index=index, state="up")
        except NetlinkError as error:
            if error.code != errno.EADDRINUSE:
                raise
            raise PodNetworkError(
                f"VXLAN_PORT: UDP port {port} is taken on this node by another program, or by VXLAN devices of other "
                "settings; choose another port, the same on all nodes"
            ) from None
        finally:
            connection.link("del", index=index)
    return True


def setup(netns_path: str, podvm_ips: Sequence[str], network: PodNetwork) -> None:
    """Build the tunnel to the pod VM with these addresses, or mend it: what is right is not touched.

    Raises TunnelIdInUse, NamespaceGone, or PodNetworkError; what was built until then is for `teardown`.
    """
    remote = remote_address(podvm_ips, network)
    # The rules are made meanwhile, for running iptables takes as long as all else.
    with opened(netns_path) as namespace, ThreadPoolExecutor(1, "tunnel-rules") as pool:
        rules = pool.submit(ensure_notrack, network.tunnel_id, remote, network.vxlan_port)
        in_new_thread(lambda: _build(network, remote, namespace))
        rules.result()


def teardown(netns_path: str, network: PodNetwork) -> None:
    """Take away all that `setup` made and nothing else; what is gone already is success.

    Goes on after a failed step. Raises TeardownFailed, which tells them all.
    """
    failures: list[str] = []
    try:
        with opened(netns_path) as namespace:
            failures += inside(namespace, lambda: _disconnect(network))
    except NamespaceGone:
        pass  # and its devices with it
    except (PodNetworkError, OSError) as error:
        failures.append(str(error))
    try:
        remove_notrack(network.tunnel_id)
    except PodNetworkError as error:
        failures.append(str(error))
    if failures:
        raise TeardownFailed(failures)


def remote_address(podvm_ips: Sequence[str], network: PodNetwork) -> str:
    """The pod VM's address of the tunnel: its first, or with a dedicated interface its second.

    Raises PodNetworkError.
    """
    place = 1 if network.dedicated else 0
    if len(podvm_ips) <= place:
        raise PodNetworkError(
            f"the pod VM has {len(podvm_ips)} addresses; its tunnel needs {place + 1}"
            + (", for HOST_INTERFACE is not the worker's primary interface" if network.dedicated else "")
        )
    try:
        return str(ipaddress.IPv4Address(podvm_ips[place]))
    except ValueError:
        raise PodNetworkError(f"the pod VM's address {podvm_ips[place]!r} is not IPv4, which tunnels need") from None


def _create(
    connection: Any, tunnel_id: int, port: int, remote: str | None = None, namespace: int | None = None
) -> bool:
    """Make the device, at once in the namespace where it belongs; False if its id is taken."""
    name = _first_name(tunnel_id)
    options: dict[str, object] = {"vxlan_group": remote} if remote else {}
    if namespace is not None:
        options["net_ns_fd"] = namespace
    for attempt in range(2):
        try:
            # Learning off: there is one peer, and a frame must not be able to name another.
            connection.link(
                "add", ifname=name, kind="vxlan", vxlan_id=tunnel_id, vxlan_port=port, vxlan_learning=0, **options
            )
            return True
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        left_over = [link for link in read_links(connection) if link.name == name and link.kind == "vxlan"]
        if attempt or not left_over:
            return False
        connection.link("del", index=left_over[0].ifindex)  # of a process that ended in the middle of `usable`
    return False


def _build(network: PodNetwork, remote: str, namespace: int) -> None:
    """From the worker's namespace, where the device keeps its socket, into the pod's, where it is used."""
    with netlink() as worker:
        enter(namespace)
        with netlink() as pod:
            links = read_links(pod)
            interface = _find(links, network.interface)
            device = _keep(pod, links, network, remote)
            if device is None:
                if not _create(worker, network.tunnel_id, network.vxlan_port, remote, namespace):
                    raise TunnelIdInUse(
                        f"tunnel id {network.tunnel_id} with UDP port {network.vxlan_port} belongs to another VXLAN "
                        "device of this node"
                    )
                device = _find(read_links(pod), _first_name(network.tunnel_id))
            if device.name != DEVICE or not device.up:
                pod.link("set", index=device.ifindex, ifname=DEVICE, state="up")
            # Before the way in is open: what is kept from it must end here, not be routed on.
            _ensure_dead_ends(pod)
            ensure_redirect_but(pod, device.ifindex, interface.ifindex, METADATA_ADDRESSES)
            ensure_redirect(pod, interface.ifindex, device.ifindex)


def _keep(pod: Any, links: list[Link], network: PodNetwork, remote: str) -> Link | None:
    """The device if it is there and right; a wrong one is taken away."""
    foreign = next((link for link in links if link.name == DEVICE and link.kind != "vxlan"), None)
    if foreign is not None:
        raise PodNetworkError(f"the pod's network namespace has a {foreign.kind} interface named {DEVICE}")
    wanted = (network.tunnel_id, network.vxlan_port, remote)
    kept = None
    for link in _ours(links, network):
        if (link.vxlan_id, link.vxlan_port, link.vxlan_remote) == wanted and kept is None:
            kept = link
        else:
            pod.link("del", index=link.ifindex)
    return kept


def _ours(links: list[Link], network: PodNetwork) -> list[Link]:
    """The tunnel's devices in the pod's namespace, the finished one first."""
    names = (DEVICE, _first_name(network.tunnel_id))
    return sorted((link for link in links if link.name in names), key=lambda link: names.index(link.name))


def _ensure_dead_ends(pod: Any) -> None:
    """Drop what is routed to the metadata addresses in the pod's namespace."""
    for destination, family in _DEAD_ENDS.items():
        try:
            pod.route("add", dst=destination, family=family, type="blackhole")
        except NetlinkError as error:
            if error.code not in (errno.EEXIST, *_NO_IPV6):
                raise


def _remove_dead_ends(pod: Any) -> None:
    for destination, family in _DEAD_ENDS.items():
        try:
            pod.route("del", dst=destination, family=family, type="blackhole")
        except NetlinkError as error:
            if error.code not in (errno.ESRCH, errno.ENOENT, *_NO_IPV6):
                raise


def _disconnect(network: PodNetwork) -> list[str]:
    """In the pod's namespace: neither redirect nor device. Returns what failed."""
    failures = []
    with netlink() as connection:
        links = read_links(connection)
        devices = [link for link in _ours(links, network) if link.vxlan_id == network.tunnel_id]
        pod = next((link for link in links if link.name == network.interface), None)
        if pod is not None:
            try:
                remove_redirect(connection, pod.ifindex, devices[0].ifindex if devices else 0)
            except (NetlinkError, PodNetworkError) as error:
                failures.append(f"the redirect of {pod.name}: {error}")
        for link in devices:
            try:
                connection.link("del", index=link.ifindex)
            except NetlinkError as error:
                failures.append(f"the device {link.name}: {error}")
        try:
            _remove_dead_ends(connection)
        except NetlinkError as error:
            failures.append(f"the routes to the metadata addresses: {error}")
    return failures


def _find(links: list[Link], name: str) -> Link:
    for link in links:
        if link.name == name:
            return link
    raise PodNetworkError(f"there is no network interface {name}")
