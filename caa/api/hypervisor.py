"""The front door of Kata shims: ttrpc service `hypervisor.Hypervisor`, four unary methods.

Between the wire and the use cases; it decides nothing but who outlives whom. A shim shows that it gave up by
ending its connection, which the server turns into a cancellation: create and start are cancelled with
their caller, stop never is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from caa.callers import called_by
from caa.errors import (
    CallError,
    ConflictError,
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from caa.sandbox import CreateRequest, Door, Sandbox
from caa.ttrpc.frames import Code, StatusError
from caa.ttrpc.protobuf import Message, field
from caa.ttrpc.server import Call, Handler

log = logging.getLogger(__name__)

SERVICE = "hypervisor.Hypervisor"

# What the incumbent answers, whatever its release. No runtime asks; a client that does must see no difference.
VERSION = "0.0.0"


class CreateVMRequest(Message):
    """`id` is the sandbox id, `network_namespace_path` is "" for a pod on the host's network."""

    id: str = field(1)
    annotations: dict[str, str] = field(2)
    network_namespace_path: str = field(3)


class CreateVMResponse(Message):
    """The unix socket on which the agent will be reached once StartVM was answered."""

    agent_socket_path: str = field(1)


class SandboxRequest(Message):
    """StartVMRequest and StopVMRequest, which are alike. Their responses are empty."""

    id: str = field(1)


class VersionMessage(Message):
    """VersionRequest and VersionResponse, which are alike."""

    version: str = field(1)


class Lifecycle(Protocol):
    """The use cases behind this door and the REST one. All raise CallError.

    Every verb may be called twice at once or again later; the second caller joins the first. `create` and
    `start` undo what they began when they are cancelled.
    """

    async def create(self, request: CreateRequest) -> Sandbox:
        """Own a new sandbox. Asks no cloud."""

    async def start(self, sandbox_id: str, *, timeout: float | None = None) -> Sandbox:
        """Launch the pod VM and return when its agent answers. `timeout` in seconds."""

    async def stop(self, sandbox_id: str) -> Sandbox | None:
        """Begin to remove everything of the sandbox. None when it is unknown, which is a success."""

    async def vm_id(self, pod_name: str, pod_namespace: str, *, wait: bool) -> str:
        """The cloud's id of the pod's VM. With `wait`, wait for it. Raises NotFoundError."""


def hypervisor_service(lifecycle: Lifecycle) -> dict[str, dict[str, Handler]]:
    """The service for `caa.ttrpc.server.Server`."""
    stopping: set[asyncio.Task[Sandbox | None]] = set()  # a task nobody holds may be collected while it runs

    async def create_vm(payload: bytes, call: Call) -> bytes:
        message = CreateVMRequest.decode(payload)
        request = CreateRequest(
            id=message.id,
            annotations=message.annotations,
            netns_path=message.network_namespace_path,
            door=Door.TTRPC,
        )
        try:
            with called_by(_who(call)):
                sandbox = await lifecycle.create(request)
        except CallError as error:
            raise status_error(error) from error
        return CreateVMResponse(agent_socket_path=sandbox.socket_path).encode()

    async def start_vm(payload: bytes, call: Call) -> bytes:
        message = SandboxRequest.decode(payload)
        try:
            with called_by(_who(call)):
                await lifecycle.start(message.id, timeout=call.timeout)
        except CallError as error:
            raise status_error(error) from error
        return b""

    async def stop_vm(payload: bytes, call: Call) -> bytes:
        sandbox_id = SandboxRequest.decode(payload).id
        with called_by(_who(call)):
            task = asyncio.create_task(_stop(lifecycle, sandbox_id))
        stopping.add(task)
        task.add_done_callback(stopping.discard)
        try:
            await asyncio.shield(task)
        except CallError as error:
            raise status_error(error) from error
        return b""

    async def version(payload: bytes, _: Call) -> bytes:
        VersionMessage.decode(payload)
        return VersionMessage(version=VERSION).encode()

    return {SERVICE: {"CreateVM": create_vm, "StartVM": start_vm, "StopVM": stop_vm, "Version": version}}


def _who(call: Call) -> str:
    return f"ttrpc (pid {call.peer_pid})" if call.peer_pid else "ttrpc"


async def _stop(lifecycle: Lifecycle, sandbox_id: str) -> Sandbox | None:
    try:
        return await lifecycle.stop(sandbox_id)
    except Exception as error:
        # Shims ignore what StopVM answers, and this one may be gone: the log is the only reader.
        log.warning("stop of sandbox %s: %s", sandbox_id, error)
        raise


_CODES: tuple[tuple[type[CallError], Code], ...] = (
    (InvalidInputError, Code.INVALID_ARGUMENT),
    (NotFoundError, Code.NOT_FOUND),
    (ConflictError, Code.FAILED_PRECONDITION),
    (DeadlineError, Code.DEADLINE_EXCEEDED),
    (UnavailableError, Code.UNAVAILABLE),
)


def status_error(error: CallError) -> StatusError:
    """The ttrpc status of a refusal.

    A failed start (and anything not in the table) is UNKNOWN, as a handler's plain error is in Go. The shim passes
    on the message alone, up to the pod's events, so the reason word goes into it.
    """
    for kind, code in _CODES:
        if isinstance(error, kind):
            return StatusError(code, str(error))
    return StatusError(Code.UNKNOWN, f"{error.reason}: {error}")
