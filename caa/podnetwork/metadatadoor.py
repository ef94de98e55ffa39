"""Where a pod's requests to the metadata addresses come to: a namespace of this process, a device for each tunnel.

A macvlan device on top of the tunnel's end takes in what `tunnel` keeps from the way to the worker. Only packets of
that one pod VM can come in at it, whatever source address they have, and answers leave by it alone. Listeners are
bound to the device, so the one that accepted a connection says whose it is.

The namespace has no name and ends with the process, and with it the devices: while the service does not run, the
packets come to a dead end, and nothing is left to tidy up. tc and a kernel's macvlan are all it takes; no iptables, no
nftables, and none of the worker's own rules can get between.

Calls block for milliseconds, so they are for a thread without event loop. One sandbox's calls must not overlap.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import socket
import time
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from caa.podnetwork.config import PodNetwork, address_of
from caa.podnetwork.errors import PodNetworkError
from caa.podnetwork.metadataaddress import METADATA_ADDRESSES, METADATA_PORT
from caa.podnetwork.namespace import enter, in_new_thread, inside, opened
from caa.podnetwork.netlink import netlink, read_links
from caa.podnetwork.tunnel import DEVICE

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)
# A pod's own requests wait here for the event loop; more are a flood.
_BACKLOG = 64
# The namespace of a service that was just killed goes a moment later, and with it the device that is in the way.
_PREDECESSOR_SECONDS = 5.0
_POLL_SECONDS = 0.05


class MetadataDoor:
    """The namespace and what is in it, until `close`."""

    def __init__(self) -> None:
        self._namespace = in_new_thread(_new_namespace)

    def close(self) -> None:
        """Give the namespace back; its devices go with it once the listeners are closed."""
        os.close(self._namespace)

    def present(self, network: PodNetwork) -> bool:
        """Whether the device of this tunnel is there, and the listeners bound to it are alive."""

        def look() -> bool:
            with netlink() as connection:
                return any(link.name == _name(network) and link.up for link in read_links(connection))

        return inside(self._namespace, look)

    def open(self, netns_path: str, network: PodNetwork) -> list[socket.socket]:
        """Let the pod in; the listening sockets, one for each family. The tunnel's worker end must be there.

        Raises NamespaceGone or PodNetworkError.
        """
        with opened(netns_path) as pod:
            in_new_thread(lambda: self._connect(pod, network))
        return inside(self._namespace, lambda: self._listen(network))

    def remove(self, network: PodNetwork) -> None:
        """Take the device away; success if it is gone already. Raises PodNetworkError."""

        def work() -> None:
            with netlink() as connection:
                _remove(connection, network)

        inside(self._namespace, work)

    def _connect(self, pod_namespace: int, network: PodNetwork) -> None:
        enter(self._namespace)
        with netlink() as here:
            _remove(here, network)
            enter(pod_namespace)
            with netlink() as pod:
                tunnel = next((link for link in read_links(pod) if link.name == DEVICE), None)
                if tunnel is None:
                    raise PodNetworkError(f"the pod's namespace has no interface {DEVICE}")
                _create(pod, _name(network), tunnel.ifindex, self._namespace)
            device = next(link for link in read_links(here) if link.name == _name(network))
            here.link("set", index=device.ifindex, state="up")
            for address in _pod_addresses(network):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                length = 128 if family == socket.AF_INET6 else 32
                here.route("add", dst=f"{address}/{length}", family=family, oif=device.ifindex, scope=_scope(family))
                here.neigh(
                    "replace",
                    dst=address,
                    lladdr=network.pod_mac,
                    ifindex=device.ifindex,
                    state="permanent",
                    family=family,
                )

    def _listen(self, network: PodNetwork) -> list[socket.socket]:
        listeners: list[socket.socket] = []
        try:
            for address in METADATA_ADDRESSES:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                if family == socket.AF_INET6 and not network.ipv6.addresses:
                    continue
                listener = socket.socket(family, socket.SOCK_STREAM)
                listeners.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _name(network).encode())
                listener.bind((address, METADATA_PORT))
                listener.listen(_BACKLOG)
                listener.setblocking(False)
        except OSError as error:
            for listener in listeners:
                listener.close()
            raise PodNetworkError(f"cannot listen for the pod's metadata requests: {error.strerror}") from None
        return listeners


def pod_addresses(network: PodNetwork) -> frozenset[str]:
    """The addresses that the pod may ask from, as a socket's peer name has them."""
    return frozenset(_pod_addresses(network))


def _pod_addresses(network: PodNetwork) -> list[str]:
    prefixes = (network.pod_ip, *network.ipv6.addresses)
    return [str(ipaddress.ip_address(address_of(prefix))) for prefix in prefixes]


def _name(network: PodNetwork) -> str:
    return f"md{network.tunnel_id}"


def _scope(family: int) -> int:
    return 253 if family == socket.AF_INET else 0  # "link"; IPv6 has no scopes


def _new_namespace() -> int:
    """A network namespace that has the metadata addresses, as a descriptor that holds it."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise PodNetworkError(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}")
    with netlink() as connection:
        loopback = next(link for link in read_links(connection) if link.loopback)
        connection.link("set", index=loopback.ifindex, state="up")
        for address in METADATA_ADDRESSES:
            six = ":" in address
            try:
                connection.addr("add", index=loopback.ifindex, address=address, prefixlen=128 if six else 32)
            except NetlinkError as error:
                if not six or error.code not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EACCES):
                    raise
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _create(pod: Any, name: str, tunnel: int, namespace: int) -> None:
    """Passthru, for the frames have the MAC address of the pod's gateway, and every other mode would not know it."""
    deadline = time.monotonic() + _PREDECESSOR_SECONDS
    while True:
        try:
            pod.link("add", ifname=name, kind="macvlan", link=tunnel, macvlan_mode="passthru", net_ns_fd=namespace)
            return
        except NetlinkError as error:
            if error.code not in (errno.EINVAL, errno.EBUSY) or time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _remove(connection: Any, network: PodNetwork) -> None:
    for link in read_links(connection):
        if link.name == _name(network):
            try:
                connection.link("del", index=link.ifindex)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise
