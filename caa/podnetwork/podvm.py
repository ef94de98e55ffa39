"""The pod VM's side: the pod's network, in a namespace of its own, at the end of the tunnel from the worker.

Runs inside the pod VM: standard library only, and iproute2's `ip`. What is there is read first and only what is missing
is done, so it can be run again at any time; a tunnel that is right loses no packet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from caa.podnetwork.config import IPv6, PodNetwork, address_of, from_json
from caa.podnetwork.discovery import RouteEntry, default_route, pod_mtu
from caa.podnetwork.errors import NoPrimaryInterface, PodNetworkError
from caa.podnetwork.iproute import Ip, Present
from caa.podnetwork.notrack import ensure_notrack
from caa.podnetwork.podplan import (
    create_device,
    external_commands,
    find_external,
    has_external,
    pod_commands,
    right_device,
    wrong_devices,
)

POD_NAMESPACE = "podns"
"""Name of the namespace, as of a file in /run/netns; the agent puts containers into it."""
PATIENCE_SECONDS = 180.0
"""How long the VM may take to get its address, the incumbent's limit."""
_POLL_SECONDS = 0.1
_NAMESPACES = Path("/run/netns")  # iproute2's
_IPV6 = Path("/proc/sys/net/ipv6")

Log = Callable[[str], None]


class _Underlay(NamedTuple):
    """The VM's own network, where the tunnel leaves it."""

    host: Present
    primary: RouteEntry
    interface: str
    mtu: int


def setup_pod(
    document: object, log: Log, *, namespace: str = POD_NAMESPACE, patience: float = PATIENCE_SECONDS
) -> None:
    """Build or mend the pod's end of the tunnel, from the `pod-network` object of apf.json.

    Waits up to `patience` seconds for the VM's own network. `log` takes one line about what is not as it should be, but
    no reason to give up. Raises ConfigError, NoPrimaryInterface or PodNetworkError.
    """
    network = from_json(document)
    if network.ipv6.addresses and not _IPV6.exists():
        log("the pod VM's kernel has no IPv6; the pod gets its IPv4 address alone")
        network = network._replace(ipv6=IPv6())
    vm = Ip()
    underlay = _wait_for_underlay(vm, network, patience)
    mtu = pod_mtu(network.mtu, network.underlay_mtu, underlay.mtu)
    pod = Ip(namespace)
    present = _pod_namespace(vm, pod, namespace)
    if right_device(network, present) is None:
        other = present.interface(network.interface)
        if other is not None and other.kind != "vxlan":
            raise PodNetworkError(f"namespace {namespace} has an interface {other.name} that is not the tunnel's")
    pod.batch([f"link del {name}" for name in wrong_devices(network, present)])
    if right_device(network, present) is None:
        vm.batch([create_device(network, namespace)])
        # With a wrong device its routes and neighbours went.
        present = present._replace(routes=(), routes6=(), neighbors=frozenset())
    outside = network.external_via_podvm and has_external(network, present)
    pod.batch(pod_commands(network, mtu, present, default_outside=outside))
    try:
        ensure_notrack(network.tunnel_id, address_of(network.worker_ip), network.vxlan_port)
    except PodNetworkError as error:
        # It saves work where something tracks connections; a VM that cannot be told not to mostly does not.
        log(f"the tunnel may be in connection tracking: {error}")
    if network.external_via_podvm and not outside:
        _move_external(vm, pod, namespace, underlay, log)


def _wait_for_underlay(vm: Ip, network: PodNetwork, patience: float) -> _Underlay:
    deadline = time.monotonic() + patience
    while True:
        host = Present(interfaces=vm.interfaces(), routes=vm.routes())
        try:
            return _underlay(vm, host, network)
        except NoPrimaryInterface as error:
            if time.monotonic() >= deadline:
                raise NoPrimaryInterface(f"the pod VM has {error}, after {patience:g} s") from None
        time.sleep(_POLL_SECONDS)


def _underlay(vm: Ip, host: Present, network: PodNetwork) -> _Underlay:
    primary = default_route(host.routes, host.links())
    link = host.interface(primary.device)
    if link is None or not link.ipv4:
        raise NoPrimaryInterface(f"no IPv4 address on its primary interface {primary.device}")
    if network.dedicated and not any(
        other.ipv4 for other in host.interfaces if not other.loopback and other.name != primary.device
    ):
        raise NoPrimaryInterface("no IPv4 address on a second interface, which the tunnel is to use")
    name, learned_mtu = vm.path(address_of(network.worker_ip))
    leaving = host.interface(name) or link
    return _Underlay(host, primary, leaving.name, learned_mtu or leaving.mtu)


def _pod_namespace(vm: Ip, pod: Ip, namespace: str) -> Present:
    """What the pod's namespace has; made if it is missing."""
    if not (_NAMESPACES / namespace).exists():
        vm.run("netns", "add", namespace)
        return Present()
    interfaces = pod.interfaces()
    if all(interface.loopback for interface in interfaces):
        return Present(interfaces)
    return Present(interfaces, pod.routes(), pod.routes("-6"), pod.permanent_neighbors())


def _move_external(vm: Ip, pod: Ip, namespace: str, underlay: _Underlay, log: Log) -> None:
    """Give the pod the VM's second card and the default route through it; without, all goes through the tunnel."""
    external = find_external(underlay.host, underlay.primary, underlay.interface)
    if external is None:
        log("the pod VM has no second network card with a way out; all traffic goes through the tunnel")
        return
    try:
        vm.run("link", "set", external.interface, "netns", namespace)
        pod.batch(external_commands(external))
    except PodNetworkError as error:
        log(f"the second network card could not be given to the pod: {error}")
