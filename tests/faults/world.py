"""One emulated cloud with guests for many services, each a worker node with a ledger and a fault proxy of its own.

    with World(forks, "aws") as world, world.node("postgresql") as node:
        node.service.start_sandbox(...)

Nodes do not see each other's instances, so several may be used at once. Conditions of the emulator are for all.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from caa.ledger import upgrade
from tests.clouds.faultproxy import FaultProxy
from tests.faults.cloud import SeenInstance, emulated
from tests.lab.forkserver import ForkedService, ForkServer
from tests.lab.ports import held_port
from tests.ledger.postgresql import Server

CLUSTER = "faults"
LEDGERS = ("sqlite", "postgresql")
# Alembic is one for the whole process, and worlds of several clouds are begun at once.
_UPGRADING = threading.Lock()


@dataclass
class Node:
    """A worker node: its service, and what stands between that and the cloud."""

    world: World
    name: str
    service: ForkedService
    proxy: FaultProxy

    def instances(self) -> list[SeenInstance]:
        """All that this node ever launched and the cloud still knows."""
        return self.world.cloud.instances(CLUSTER, self.name)

    def left_behind(self) -> Mapping[str, list[str]]:
        """What is still there of instances that are not: names by kind."""
        return self.world.cloud.left_behind(CLUSTER, self.name)


class World:
    """Context manager. The first use of PostgreSQL starts a server."""

    def __init__(self, forks: ForkServer, cloud: str) -> None:
        self.cloud = emulated(cloud)
        self._forks = forks
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        self._postgresql: tuple[Server, str] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> World:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.cloud)
            self._port = held_port()
            stack.enter_context(self.cloud.guests(self._port))
            self.cloud.set_up()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def node(self, ledger: str, *, scarce: bool = False) -> Iterator[Node]:
        """A node with a service that is not started yet; everything of it is gone afterwards, but for instances.

        `scarce`: the first two of its three offerings have no capacity.
        """
        name = f"worker-{next(self._numbers)}"
        # Short, for sockets are in it.
        directory = Path(tempfile.mkdtemp(prefix="caa-", dir="/run"))
        with self.cloud.proxy() as proxy:
            environ = self.cloud.environ(proxy, scarce=scarce) | self._own(name, ledger)
            service = ForkedService(self._forks, directory, environ)
            try:
                yield Node(self, name, service, proxy)
            finally:
                service.kill()
                service.shut_down()
                shutil.rmtree(directory, ignore_errors=True)

    def _own(self, name: str, ledger: str) -> dict[str, str]:
        environ = {"CAA_CLUSTER_ID": CLUSTER, "NODE_NAME": name, "FORWARDER_PORT": str(self._port)}
        if ledger == "postgresql":
            environ["CAA_LEDGER_URL"] = self._new_database()
        return environ

    def _new_database(self) -> str:
        with self._lock:
            if self._postgresql is None:
                server = Server()
                self._stack.callback(server.remove)
                template = server.new_database()
                with _UPGRADING:
                    upgrade(server.url(template))
                self._postgresql = server, template
            server, template = self._postgresql
            return server.url(server.new_database(template))
