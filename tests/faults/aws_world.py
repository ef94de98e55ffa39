"""One emulated EC2 with guests for many services, each a worker node with a ledger and a fault proxy of its own.

    with World() as world, world.node("postgresql") as node:
        node.service.start_sandbox(...)

Nodes do not see each other's instances, so several may be used at once. Conditions of the emulator are for all.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from caa.ledger import upgrade
from tests.clouds.aws.account import ec2_client, instances_of
from tests.clouds.aws.emulator import AwsEmulator
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import FaultProxy
from tests.lab.forkserver import ForkedService, ForkServer
from tests.ledger.postgresql import Server

CLUSTER = "faults"
LEDGERS = ("sqlite", "postgresql")
TYPE = "m6a.large"
# Only its third offering can be had.
SCARCE_TYPE = "c6a.large"
_TAG = "peerpods.caa/"
# As in EC2 an instance is not there at once, and its agent later still: time for what is asked meanwhile.
PENDING_SECONDS = 0.05
BOOT_SECONDS = 0.25


@dataclass(frozen=True)
class SeenInstance:
    """An instance as the cloud has it, in whatever state."""

    id: str
    state: str
    sandbox_id: str
    attempt: str

    @property
    def alive(self) -> bool:
        return self.state not in ("shutting-down", "terminated")


@dataclass
class Node:
    """A worker node: its service, and what stands between that and the cloud."""

    world: World
    name: str
    service: ForkedService
    proxy: FaultProxy

    def instances(self) -> list[SeenInstance]:
        """All that this node ever launched and the cloud still knows; asked of the cloud itself."""
        wanted = [{"Name": f"tag:{_TAG}node", "Values": [self.name]}]
        listed = instances_of(self.world.ec2.describe_instances(Filters=wanted))
        return [_seen(one) for one in listed]


class World:
    """Context manager. The first use of PostgreSQL starts a server."""

    def __init__(self, forks: ForkServer) -> None:
        self._forks = forks
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        self._postgresql: tuple[Server, str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            self.emulator = stack.enter_context(AwsEmulator())
            self._port = free_port()
            stack.enter_context(FakeGuests(self.emulator.url, self._port))
            self.ec2: Any = ec2_client(self.emulator.url)
            stack.callback(self.ec2.close)
            self.set_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def set_up(self) -> None:
        """Empty the cloud, and give it a network and the usual conditions."""
        self.emulator.reset()
        self.seed = self.emulator.seed()
        self.emulator.delays(pending=PENDING_SECONDS, boot=BOOT_SECONDS)
        self.emulator.capacity(*({"instance_type": SCARCE_TYPE, "zone": zone} for zone in self.seed.zones[:2]))

    @contextlib.contextmanager
    def node(self, ledger: str, instance_type: str = TYPE) -> Iterator[Node]:
        """A node with a service that is not started yet; everything of it is gone afterwards, but for instances."""
        name = f"worker-{next(self._numbers)}"
        # Short, for sockets are in it.
        directory = Path(tempfile.mkdtemp(prefix="caa-", dir="/run"))
        with FaultProxy(self.emulator.url) as proxy:
            environ = self._environ(name, ledger, instance_type) | self.emulator.environ(proxy.url)
            service = ForkedService(self._forks, directory, environ)
            try:
                yield Node(self, name, service, proxy)
            finally:
                service.kill()
                service.shut_down()
                shutil.rmtree(directory, ignore_errors=True)

    def _environ(self, name: str, ledger: str, instance_type: str) -> dict[str, str]:
        environ = {
            "CLOUD_PROVIDER": "aws",
            "PODVM_AMI_ID": self.seed.images["x86_64"],
            "PODVM_INSTANCE_TYPE": instance_type,
            "AWS_SUBNET_IDS": ",".join(self.seed.subnets.values()),
            "AWS_SG_IDS": self.seed.security_group,
            "SSH_KP_NAME": self.seed.key_name,
            "DISABLECVM": "true",
            "CAA_CLUSTER_ID": CLUSTER,
            "NODE_NAME": name,
            "FORWARDER_PORT": str(self._port),
        }
        if ledger == "postgresql":
            environ["CAA_LEDGER_URL"] = self._new_database()
        return environ

    def _new_database(self) -> str:
        with self._lock:
            if self._postgresql is None:
                server = Server()
                self._stack.callback(server.remove)
                template = server.new_database()
                upgrade(server.url(template))
                self._postgresql = server, template
            server, template = self._postgresql
            return server.url(server.new_database(template))


def _seen(one: dict[str, Any]) -> SeenInstance:
    tags = {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])}
    return SeenInstance(
        one["InstanceId"], one["State"]["Name"], tags.get(_TAG + "sandbox-id", ""), tags.get(_TAG + "attempt", "")
    )


def free_port() -> int:
    """A TCP port that nobody on this machine uses now; so other tests' guests are in nobody's way."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
