"""The pod VM's network as iproute2's `ip` tells it, and changes to it by a batch. Standard library only."""

from __future__ import annotations

import json
import subprocess
from typing import Any, NamedTuple

from caa.podnetwork.discovery import LinkEntry, RouteEntry
from caa.podnetwork.errors import PodNetworkError

_RUN_SECONDS = 60  # an `ip` that takes this long hangs


class Interface(NamedTuple):
    """A network interface. Prefixes are text, as "10.0.0.4/24"."""

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
    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]


class Present(NamedTuple):
    """What a namespace has. Routes are unicast ones of the main table."""

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    routes6: tuple[RouteEntry, ...] = ()
    neighbors: frozenset[tuple[str, str, str]] = frozenset()
    """(address, MAC, interface) of the permanent ones."""

    def links(self) -> list[LinkEntry]:
        return [LinkEntry(interface.name, interface.loopback) for interface in self.interfaces]

    def interface(self, name: str | None) -> Interface | None:
        return next((interface for interface in self.interfaces if interface.name == name), None)


class Ip:
    """`ip` in one network namespace: the process's own, or a named one."""

    def __init__(self, namespace: str = "") -> None:
        self._command = ["ip", "-n", namespace] if namespace else ["ip"]

    def run(self, *arguments: str) -> str:
        """Returns what it printed. Raises PodNetworkError with what it complained of."""
        return _run([*self._command, *arguments], None)

    def batch(self, lines: list[str]) -> None:
        """Run the commands one after the other up to the first that fails. Raises PodNetworkError."""
        if lines:
            _run([*self._command, "-batch", "-"], lines)

    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(_interface(item) for item in _json(self.run("-json", "-details", "address", "show")))

    def routes(self, family: str = "-4") -> tuple[RouteEntry, ...]:
        return tuple(map(_route, _json(self.run("-json", family, "route", "show", "table", "main", "type", "unicast"))))

    def permanent_neighbors(self) -> frozenset[tuple[str, str, str]]:
        items = _json(self.run("-json", "neighbor", "show", "nud", "permanent"))
        return frozenset((item["dst"], item.get("lladdr", ""), item["dev"]) for item in items)

    def path(self, address: str) -> tuple[str, int]:
        """(interface, MTU) of the way to an address; the MTU is 0 unless the kernel has learned a smaller one."""
        route = _json(self.run("-json", "route", "get", address))[0]
        metrics = route.get("metrics") or [{}]
        return route["dev"], int(metrics[0].get("mtu", 0))


def _run(command: list[str], lines: list[str] | None) -> str:
    text = None if lines is None else "\n".join(lines) + "\n"
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_RUN_SECONDS)
    except FileNotFoundError:
        raise PodNetworkError("iproute2's ip is not installed") from None
    except OSError as error:
        raise PodNetworkError(f"ip cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise PodNetworkError(f"{' '.join(command)} did not end within {_RUN_SECONDS} s") from None
    if done.returncode != 0:
        raise PodNetworkError(f"{' '.join(command)}: {_complaint(done.stderr, lines)}")
    return done.stdout


def _complaint(stderr: str, lines: list[str] | None) -> str:
    """What `ip` wrote, with the command of a batch in place of its line's number."""
    words = " ".join(stderr.split())
    before, failed, number = words.rpartition(" Command failed -:")
    if lines and failed and number.isdecimal() and int(number) <= len(lines):
        return f"{before} ({lines[int(number) - 1]})"
    return words


def _json(text: str) -> list[Any]:
    # Nothing to show is nothing at all, not an empty list; of what it has no word for, it writes an empty object.
    return [item for item in json.loads(text or "[]") if item]


def _interface(item: dict[str, Any]) -> Interface:
    info = item.get("linkinfo", {})
    data = info.get("info_data", {}) if info.get("info_kind") == "vxlan" else {}
    addresses = [a for a in item.get("addr_info", []) if a.get("local")]
    return Interface(
        name=item["ifname"],
        mac=item.get("address", ""),
        mtu=item["mtu"],
        up="UP" in item["flags"],
        loopback="LOOPBACK" in item["flags"],
        kind=info.get("info_kind", ""),
        vxlan_id=data.get("id", 0),
        vxlan_port=data.get("port", 0),
        vxlan_remote=data.get("remote", ""),
        ipv4=tuple(f"{a['local']}/{a['prefixlen']}" for a in addresses if a["family"] == "inet"),
        ipv6=tuple(f"{a['local']}/{a['prefixlen']}" for a in addresses if a["family"] == "inet6"),
    )


def _route(item: dict[str, Any]) -> RouteEntry:
    hops = item.get("nexthops") or [item]
    hop = next((hop for hop in hops if not _dead(hop)), hops[0])
    return RouteEntry(
        destination=item.get("dst"),
        device=hop.get("dev"),
        metric=item.get("metric"),
        gateway=hop.get("gateway", ""),
        source=item.get("prefsrc", ""),
        dead=_dead(hop),
    )


def _dead(hop: dict[str, Any]) -> bool:
    return not {"dead", "linkdown"}.isdisjoint(hop.get("flags", []))
