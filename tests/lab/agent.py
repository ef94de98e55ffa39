"""A client of an agent socket that calls as a shim does, and goes on calling while other things happen."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from caa.ttrpc.client import Client
from caa.ttrpc.frames import StatusError
from caa.ttrpc.protobuf import Message, field

AGENT = "grpc.AgentService"
HEALTH = "grpc.Health"
SIGKILL = 9


class Container(Message):
    """CreateContainer, StartContainer, RemoveContainer: the id is field 1 in each."""

    container_id: str = field(1)


class Process(Message):
    """WaitProcess and SignalProcess."""

    container_id: str = field(1)
    exec_id: str = field(2)
    signal: int = field(3)


class Status(Message):
    """HealthCheckResponse and WaitProcessResponse: one number in field 1."""

    status: int = field(1)


class SandboxCreation(Message):
    """CreateSandboxRequest, as far as it is used here."""

    hostname: str = field(1)
    dns: list[str] = field(2)
    sandbox_id: str = field(5)


@dataclass
class Waiting:
    """A WaitProcess that is under way."""

    caller: AgentCaller
    container: str
    task: asyncio.Task[bytes]

    async def finish(self) -> int:
        """Let the process end; 0 when the wait was answered."""
        if self.task.done():
            return 1
        signal = Process(container_id=self.container, signal=SIGKILL)
        await self.caller.call("SignalProcess", signal)
        await asyncio.wait_for(self.task, 30)
        return 0


class AgentCaller:
    """One connection to an agent socket."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._calling: asyncio.Task[None] | None = None
        self._calls = 0
        self._errors = 0

    @classmethod
    async def connect(cls, path: str) -> AgentCaller:
        """Connect to the socket."""
        return cls(await Client.connect(path))

    async def check(self) -> int:
        """Health.Check; 1 is SERVING."""
        return Status.decode(await self._client.call(HEALTH, "Check", b"", 30)).status

    async def call(self, method: str, request: Message, timeout: float | None = 60) -> bytes:
        """One call of the agent service."""
        return await self._client.call(AGENT, method, request.encode(), timeout)

    async def run_container(self, container: str) -> Waiting:
        """A sandbox and a container in it, and the wait for its end, which stays under way."""
        await self.call("CreateSandbox", SandboxCreation(hostname="demo", sandbox_id="demo"))
        await self.call("CreateContainer", Container(container_id=container))
        await self.call("StartContainer", Container(container_id=container))
        wait = asyncio.create_task(self.call("WaitProcess", Process(container_id=container), None))
        return Waiting(self, container, wait)

    def call_every(self, seconds: float) -> None:
        """Go on calling Health.Check, counting answers and errors, until told to stop."""

        async def forever() -> None:
            while True:
                try:
                    self._errors += await self.check() != 1
                except (StatusError, OSError, TimeoutError):
                    self._errors += 1
                self._calls += 1
                await asyncio.sleep(seconds)

        self._calling = asyncio.create_task(forever())

    async def stop_calling(self) -> tuple[int, int]:
        """Calls made and errors seen."""
        assert self._calling is not None
        self._calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._calling
        return self._calls, self._errors

    async def close(self) -> None:
        """End the connection."""
        await self._client.close()
