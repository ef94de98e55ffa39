"""A worker, its pods, their pod VMs and the world outside, each a network namespace of this machine.

```
outside ---- br0 (10.10/16) ---- worker enc0 .0.1      enc0 .1.N pod VM N -- its own pod namespace
             br1 (192.168.0/24)- worker enc1 .1        enc1 .N   pod VM N
                                 worker cni0 10.128.0.1 -- eth0 10.128.0.N worker's namespace of pod N
```
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from caa.podnetwork.config import PodNetwork, to_json
from caa.podnetwork.namespace import inside, opened
from caa.podnetwork.podvm import setup_pod
from caa.podnetwork.tunnel import setup, teardown
from caa.podnetwork.worker import TunnelSettings, inspect

FIRST = 555000
OUTSIDE_ADDRESS = "203.0.113.1"
_numbers = itertools.count()

Result = TypeVar("Result")


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}\n{text or ''}"
    return done.stdout


def path_of(name: str) -> str:
    return f"/run/netns/{name}"


def within(name: str, work: Callable[[], Result]) -> Result:
    """`work` in the namespace of this name, in a thread of its own."""
    with opened(path_of(name)) as namespace:
        return inside(namespace, work)


def sysctl(name: str, key: str, value: str) -> None:
    within(name, lambda: Path("/proc/sys/net", key).write_text(value))


class Topology:
    """Names of namespaces carry the process's id, for other tests may run on this machine at the same time."""

    def __init__(self, mtu: int = 1500, pod_mtu: int = 1500, ipv6: bool = False) -> None:
        self._prefix = f"ct{os.getpid()}-{next(_numbers)}-"
        self._made: list[str] = []
        self.mtu, self.pod_mtu, self.ipv6 = mtu, pod_mtu, ipv6
        self.bridge, self.worker, self.outside = map(self.namespace, ("bridge", "worker", "outside"))
        self._build()

    def namespace(self, name: str) -> str:
        full = self._prefix + name
        run("ip", "netns", "add", full)
        self._made.append(full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def close(self) -> None:
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def ip(self, namespace: str, *lines: str) -> None:
        run("ip", "-n", namespace, "-batch", "-", text="\n".join(lines) + "\n")

    def cable(self, bridge: str, namespace: str, interface: str, prefix: str) -> None:
        port = f"p{next(_numbers)}"
        self.ip(
            self.bridge,
            f"link add {port} mtu {self.mtu} master {bridge} type veth peer name {interface} mtu {self.mtu} "
            f"netns {namespace}",
            f"link set {port} up",
        )
        self.ip(namespace, f"addr add {prefix} dev {interface}", f"link set {interface} up")

    def _build(self) -> None:
        for bridge in ("br0", "br1"):
            self.ip(self.bridge, f"link add {bridge} type bridge", f"link set {bridge} mtu {self.mtu} up")
        self.cable("br0", self.outside, "enc0", "10.10.9.9/16")
        self.cable("br0", self.worker, "enc0", "10.10.0.1/16")
        self.cable("br1", self.worker, "enc1", "192.168.0.1/24")
        self.ip(self.outside, f"addr add {OUTSIDE_ADDRESS}/32 dev lo")
        self.ip(
            self.worker,
            "route add default via 10.10.9.9",
            "link add cni0 type bridge",
            f"link set cni0 mtu {self.pod_mtu} up",
            "addr add 10.128.0.1/24 dev cni0",
        )
        if self.ipv6:
            self.ip(self.worker, "addr add fd00:128::1/64 dev cni0 nodad")
        sysctl(self.worker, "ipv4/ip_forward", "1")
        self.worker_rules()

    def worker_rules(self) -> None:
        """What a node has of its own: forwarding for pods only, masquerading, and an empty raw table."""
        run(
            *("ip", "netns", "exec", self.worker, "iptables-restore"),
            text="*filter\n:FORWARD DROP\n-A FORWARD -i cni0 -j ACCEPT\n"
            "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\nCOMMIT\n"
            "*nat\n-A POSTROUTING -s 10.128.0.0/24 -o enc0 -j MASQUERADE\nCOMMIT\n"
            "*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n",
        )

    def pod(self, number: int, mac: str | None = None) -> Pod:
        """Pod `number` (from 2 on): what CNI made on the worker, and a VM that nothing was set up in."""
        pod = Pod(self, number, self.namespace(f"workerpod{number}"), self.namespace(f"podvm{number}"))
        self.cni(pod, mac or f"0a:58:0a:84:{number // 256:02x}:{number % 256:02x}")
        self.cable("br0", pod.vm, "enc0", f"10.10.1.{number}/16")
        self.cable("br1", pod.vm, "enc1", f"192.168.0.{number}/24")
        self.ip(pod.vm, "route add default via 10.10.9.9")
        pod.podns = f"{self._prefix}pod{number}"
        self._made.append(pod.podns)
        return pod

    def cni(self, pod: Pod, mac: str) -> None:
        """The pod's interface on the worker, as the bridge plugin makes it."""
        self.ip(
            self.worker,
            f"link add veth{pod.number} mtu {self.pod_mtu} master cni0 type veth peer name eth0 mtu {self.pod_mtu} "
            f"address {mac} netns {pod.netns}",
            f"link set veth{pod.number} up",
        )
        lines = [f"addr add {pod.address}/24 dev eth0", "link set eth0 up", "route add default via 10.128.0.1"]
        if self.ipv6:
            lines.insert(1, f"addr add {pod.address6}/64 dev eth0 nodad")
            lines.append("route add ::/0 via fd00:128::1")
        self.ip(pod.netns, *lines)


class Pod:
    """One pod: its namespace on the worker, its VM, and the namespace that the VM makes for it."""

    podns: str

    def __init__(self, topology: Topology, number: int, netns: str, vm: str) -> None:
        self.topology, self.number, self.netns, self.vm = topology, number, netns, vm
        self.address, self.address6 = f"10.128.0.{number}", f"fd00:128::{number}"
        self.vm_addresses = [f"10.10.1.{number}", f"192.168.0.{number}"]
        self.messages: list[str] = []

    def inspect(self, settings: TunnelSettings | None = None) -> PodNetwork:
        settings = settings or TunnelSettings()
        found = within(self.topology.worker, lambda: inspect(path_of(self.netns), settings))
        return found.with_tunnel_id(FIRST + self.number)

    def setup(self, network: PodNetwork) -> None:
        within(self.topology.worker, lambda: setup(path_of(self.netns), self.vm_addresses, network))

    def teardown(self, network: PodNetwork) -> None:
        within(self.topology.worker, lambda: teardown(path_of(self.netns), network))

    def setup_vm(self, document: object, patience: float = 60) -> None:
        within(self.vm, lambda: setup_pod(document, self.messages.append, namespace=self.podns, patience=patience))

    def connect(self, settings: TunnelSettings | None = None) -> PodNetwork:
        """Both ends, as they are made in life."""
        network = self.inspect(settings)
        self.setup(network)
        self.setup_vm(to_json(network))
        return network


@contextmanager
def echo_server(namespace: str, address: str, port: int = 8080) -> Iterator[None]:
    """Answers each TCP connection with all that it got, once the other side has ended."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = within(namespace, lambda: socket.create_server((address, port), family=family))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                received = bytearray()
                while chunk := connection.recv(1 << 16):
                    received += chunk
                connection.sendall(received)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def exchange(namespace: str, address: str, data: bytes, port: int = 8080, timeout: float = 60) -> tuple[bytes, str]:
    """What an echo server answers to `data`, and the address that it is asked from."""
    connection = within(namespace, lambda: socket.create_connection((address, port), timeout=timeout))
    with connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while chunk := connection.recv(1 << 16):
            received += chunk
        sender.join()
        return bytes(received), connection.getsockname()[0]


def snapshot(namespace: str) -> str:
    """Interfaces, addresses, routes, tc and iptables rules of a namespace, as the tools print them.

    Without what changes by itself: counters, a link's state some time after its cable's, IPv6's link-local addresses.
    """
    return "\n".join(
        (
            steady(run("ip", "-n", namespace, "link")),
            steady(run("ip", "-n", namespace, "-oneline", "address")),
            steady("\n".join(sorted(run("ip", "-n", namespace, "route", "show", "table", "all").splitlines()))),
            run("tc", "-n", namespace, "qdisc"),
            *(tc_filters(namespace, interface) for interface in interfaces(namespace)),
            steady(re.sub(r"\[\d+:\d+\]", "", run("ip", "netns", "exec", namespace, "iptables-save"))),
        )
    )


def steady(text: str) -> str:
    """What tools print, without what the kernel changes up to a second later: links' states, link-local addresses."""
    text = re.sub(r" state \S+|NO-CARRIER,|,LOWER_UP| linkdown", "", text)
    return "\n".join(line for line in text.splitlines() if not re.match(r"#|.*(inet6 fe80|fe80:|ff00::/8)", line))


def rebuilt(text: str) -> str:
    """A snapshot without what differs between two devices that were made alike: numbers, and MACs nobody chose."""
    lines = re.sub(r"^\d+: ", "", text, flags=re.M).splitlines()
    free = [place + 1 for place, line in enumerate(lines) if line.startswith("vxlan1@")]
    return "\n".join(re.sub(r"@if\d+", "@", line) for place, line in enumerate(lines) if place not in free)


def interfaces(namespace: str) -> list[str]:
    return [item["ifname"] for item in json.loads(run("ip", "-n", namespace, "-json", "link"))]


def tc_filters(namespace: str, interface: str) -> str:
    if f"dev {interface} parent ffff:fff1" not in run("tc", "-n", namespace, "qdisc"):
        return ""
    text = run("tc", "-n", namespace, "filter", "show", "dev", interface, "ingress")
    return re.sub(r"index \d+ ref", "index N ref", text)


def namespaces_in_use() -> int:
    """How many of this test's network namespaces there are, by name."""
    mine = f"ct{os.getpid()}-"
    return sum(name.startswith(mine) for name in os.listdir("/run/netns"))


def fragments(namespace: str) -> dict[str, int]:
    """Counters of the namespace's IPv4 about packets taken apart or put together."""
    lines = within(namespace, lambda: Path("/proc/thread-self/net/snmp").read_text()).splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Ip:"))
    counters = dict(zip(names, map(int, values), strict=True))
    return {name: counters[name] for name in ("FragCreates", "FragFails", "ReasmReqds", "ReasmFails")}
