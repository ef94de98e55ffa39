"""Pods with tunnels and metadata, on a worker whose own metadata service would be within their reach.

The service runs as in life, in an event loop whose threads are in the worker's namespace, over a real ledger. Only the
cloud's descriptions are given.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from caa.clock import SystemClock
from caa.ledger import Ledger, open_ledger, upgrade
from caa.ledgerthreads import LedgerThreads
from caa.metadata.service import MetadataService
from caa.metadata.tokens import Tokens
from caa.podnetwork.config import to_json
from caa.podnetwork.metadataaddress import METADATA_ADDRESSES
from caa.podnetwork.worker import TunnelSettings
from caa.sandbox import AttemptState, Sandbox, SandboxState
from caa.settings import Settings, load
from caa.tunnels import Tunnels
from providers.base import OwnerScope
from tests.ledger import samples
from tests.network.topology import Pod, Topology, path_of, run, within

RIGHT = {"CLOUD_PROVIDER": "aws"}
Result = TypeVar("Result")


def description(number: int) -> dict[str, Any]:
    """What EC2 says of pod `number`'s instance."""
    return {
        "InstanceId": f"i-{number:017x}",
        "InstanceType": "m6a.large",
        "ImageId": "ami-0123456789abcdef0",
        "OwnerId": "111122223333",
        "ReservationId": "r-1",
        "Architecture": "x86_64",
        "LaunchTime": "2026-03-01T12:30:15+00:00",
        "PrivateIpAddress": f"10.10.1.{number}",
        "PrivateDnsName": f"ip-10-10-1-{number}.eu-west-1.compute.internal",
        "Placement": {"AvailabilityZone": "eu-west-1b"},
        "SecurityGroups": [{"GroupId": "sg-1", "GroupName": "pods"}],
        "NetworkInterfaces": [
            {
                "MacAddress": f"02:00:00:00:01:{number:02x}",
                "NetworkInterfaceId": f"eni-{number}",
                "SubnetId": "subnet-1",
                "VpcId": "vpc-1",
                "OwnerId": "111122223333",
                "Groups": [{"GroupId": "sg-1", "GroupName": "pods"}],
                "PrivateIpAddresses": [{"PrivateIpAddress": f"10.10.1.{number}", "Primary": True}],
                "Attachment": {"DeviceIndex": 0},
            }
        ],
    }


class World:
    """A worker with the service on it."""

    def __init__(self, directory: Path) -> None:
        self.topology = Topology(ipv6=True)
        self.directory = directory
        self.settings = self.read()
        self.descriptions: dict[str, Mapping[str, Any]] = {}
        self.asked: list[str] = []
        """Instances that the cloud was asked for."""
        upgrade(self.settings.ledger_url)
        self.ledger: Ledger = open_ledger(self.settings.ledger_url)
        self.pods: dict[int, Pod] = {}
        self.sandboxes: dict[int, Sandbox] = {}
        self.trap = Trap(self.topology)
        self.begin()

    def read(self, **keys: str) -> Settings:
        own = {"CAA_STATE_DIR": str(self.directory), "CAA_RUN_DIR": str(self.directory), "PODS_DIR": "/run/caa-pods"}
        return load(RIGHT | own | keys)

    def configure(self, **keys: str) -> None:
        """As a changed ConfigMap does it: the settings are exchanged as a whole."""
        self.settings = self.read(**keys)

    def begin(self) -> None:
        """The service starts."""
        up: Future[asyncio.AbstractEventLoop] = Future()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: within(self.topology.worker, lambda: asyncio.run(self._run(up))))
        self._thread.start()
        self._loop = up.result(60)

    async def _run(self, up: Future[asyncio.AbstractEventLoop]) -> None:
        threads, clock = LedgerThreads(), SystemClock()
        self.service = MetadataService(
            self.ledger, threads, self._describe, lambda: self.settings, Tokens(b"k" * 32), clock
        )
        scope = OwnerScope("c1", "n1")
        self.tunnels = Tunnels(self.ledger, threads, scope, clock, TunnelSettings(), self.service)
        self._end = asyncio.Event()
        up.set_result(asyncio.get_running_loop())
        await self._end.wait()
        await self.service.shutdown()
        await self.tunnels.close()
        await threads.close()

    def end(self) -> None:
        """The service ends. What the kernel holds for it ends with it, as when it is killed."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run it in the service's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _describe(self, instance_id: str) -> Mapping[str, Any]:
        self.asked.append(instance_id)
        return self.descriptions.get(instance_id, {})

    def pod(self, number: int) -> Pod:
        """A running peer pod, both ends of its tunnel made."""
        pod = self.topology.pod(number)
        network = pod.inspect()
        described = description(number)
        sandbox = samples.in_state(
            self.ledger,
            SandboxState.STARTING,
            f"sb-{number}",
            netns_path=path_of(pod.netns),
            pod_network=to_json(network),
            tunnel_id=network.tunnel_id,
        )
        attempt = self.ledger.add_attempt(samples.attempt(sandbox.id), sandbox_version=sandbox.version)
        self.ledger.save_attempt(
            replace(
                attempt,
                state=AttemptState.ACCEPTED,
                instance_id=described["InstanceId"],
                addresses=tuple(pod.vm_addresses),
            )
        )
        sandbox = self.ledger.sandbox(sandbox.id) or sandbox
        self.sandboxes[number] = self.ledger.save_sandbox(replace(sandbox, state=SandboxState.RUNNING))
        self.descriptions[described["InstanceId"]] = described
        self.pods[number] = pod
        self.setup(number)
        pod.setup_vm(to_json(network))
        return pod

    def setup(self, number: int) -> bool:
        """What a start does, and every look after the tunnels."""
        return self.do(self.tunnels.setup(self.sandboxes[number], self.pods[number].vm_addresses))

    def serve(self, number: int) -> None:
        """The looks of a service that followed another one, whose devices the kernel takes away when it has time."""
        deadline = time.monotonic() + 60
        while not self.setup(number):
            assert time.monotonic() < deadline

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.end()
        self.trap.close()
        self.ledger.close()
        self.topology.close()


class Trap:
    """The worker's own metadata service: a real server, out on the worker's default route, and what it heard."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        topology.ip(
            topology.outside,
            *(f"addr add {address} dev lo" for address in METADATA_ADDRESSES),
            "addr add fd00:9::9/64 dev enc0 nodad",
        )
        topology.ip(topology.outside, "route add fd00:128::/64 via fd00:9::1")
        topology.ip(topology.worker, "addr add fd00:9::1/64 dev enc0 nodad", "route add default via fd00:9::9")
        within(topology.worker, lambda: Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1"))
        # Whatever a pod sends there would be counted here, be it a single packet.
        for tool, address in zip(("iptables", "ip6tables"), METADATA_ADDRESSES, strict=True):
            run(*f"ip netns exec {topology.worker} {tool} -t mangle -A PREROUTING -d {address}".split())
        self.heard: list[str] = []
        self._listeners = [self._listen(address) for address in METADATA_ADDRESSES]

    def _listen(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = within(self._topology.outside, lambda: socket.create_server((address, 80), family=family))
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
        return listener

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                self.heard.append(peer[0])
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\ni-worker")

    def packets(self) -> int:
        """How many packets for the metadata addresses came out of pods, since the worker has the rules."""
        worker = self._topology.worker
        lines = "\n".join(
            run(*f"ip netns exec {worker} {tool} -t mangle -nvxL PREROUTING".split())
            for tool in ("iptables", "ip6tables")
        ).splitlines()
        return sum(int(line.split()[0]) for line in lines if any(address in line for address in METADATA_ADDRESSES))

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def curl(pod: Pod, *arguments: str, namespace: str = "") -> tuple[int, str]:
    """(status, body) of what the workload's curl gets; status 0 and the error's text when there is no answer.

    Where none may come, the arguments say how long it is waited for.
    """
    command = [
        "ip",
        "netns",
        "exec",
        namespace or pod.podns,
        "curl",
        "-sS",
        "-m",
        "60",
        "-w",
        "\n%{http_code}",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    body, _, status = done.stdout.rpartition("\n")
    return (int(status), body) if done.returncode == 0 else (0, done.stderr)


@contextlib.contextmanager
def world(directory: Path) -> Iterator[World]:
    made = World(directory)
    try:
        yield made
    finally:
        made.close()
