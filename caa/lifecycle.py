"""The use cases: create, start, stop. The one place that orders the steps of a sandbox's life and waits.

Every verb may be called twice, at once or later: the second caller joins the first. Cancelling a call means that
its caller is gone. A start whose last caller is gone is undone; a stop is never cancelled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from caa.ending import Ending
from caa.errors import ConflictError, DeadlineError, InvalidInputError, NotFoundError, UnavailableError
from caa.explain import Explanation, explain
from caa.guestconfig import INITDATA_ANNOTATION, initdata
from caa.ledger import SandboxExists, TunnelTaken
from caa.node import Node
from caa.podnetwork.config import to_json
from caa.sandbox import CRIO_NAME, FINAL_STATES, CreateRequest, Sandbox, SandboxState
from caa.sizing import POD_NAME, POD_NAMESPACE, ImageNotAllowedError, requirements
from caa.starting import Starting, limit_reached
from providers.base import ProviderError

log = logging.getLogger(__name__)

# The id becomes a directory name and part of a unix socket path.
_SANDBOX_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# sun_path of a unix socket holds 108 bytes with its end mark.
SOCKET_PATH_LIMIT = 107
# A cloud call under way is given this long when the service stops; its attempt is recorded, so nothing is lost.
CLOSE_SECONDS = 5.0


@dataclass(slots=True)
class _Flight:
    """A start under way and how many callers wait for it."""

    task: asyncio.Task[Sandbox]
    callers: int = 0


class Lifecycle:
    """The three verbs over one node's sandboxes."""

    def __init__(self, node: Node, starting: Starting, ending: Ending) -> None:
        self._node = node
        self._starting = starting
        self._ending = ending
        self._flights: dict[str, _Flight] = {}
        self._changed = asyncio.Condition()
        self._closing = False

    async def create(self, request: CreateRequest) -> Sandbox:
        """Record a sandbox and say where its agent will be. No cloud call. The same id again: the same answer.

        Raises InvalidInputError (field says which), ConflictError for an id whose life is over.
        """
        pod_namespace, pod_name = self._check(request)
        now = self._node.clock.now()
        sandbox = Sandbox(
            id=request.id,
            cluster=self._node.scope.cluster,
            node=self._node.scope.node,
            pod_namespace=pod_namespace,
            pod_name=pod_name,
            door=request.door,
            annotations=dict(request.annotations),
            netns_path=request.netns_path,
            socket_path=str(self._socket_path(request.id)),
            state=SandboxState.CREATED,
            created_at=now,
            changed_at=now,
        )
        adding = asyncio.ensure_future(self._record(sandbox))
        try:
            return await asyncio.shield(adding)
        except asyncio.CancelledError:
            # No StopVM ever follows a CreateVM whose caller went away.
            await asyncio.wait([adding])
            if not adding.cancelled() and adding.exception() is None:
                await self._ending.begin(request.id, "CallerGone", "the caller of CreateVM went away")
            raise

    async def start(self, sandbox_id: str, *, timeout: float | None = None) -> Sandbox:
        """Launch the sandbox's instance; returns when its agent answers. `timeout` in seconds.

        Raises NotFoundError, ConflictError, StartFailedError (with the cloud's reason), DeadlineError, and
        UnavailableError (ImageBuilding, ImageFailed), after which the sandbox may be started later.
        """
        sandbox = await self._get(sandbox_id)
        flight = self._flights.get(sandbox_id)
        if flight is None:
            if sandbox.state is SandboxState.RUNNING:
                return sandbox
            if sandbox.state not in (SandboxState.CREATED, SandboxState.STARTING):
                raise ConflictError(_cannot_start(sandbox))
            refusal = self._node.image_refusal()
            if refusal is not None and sandbox.state is SandboxState.CREATED:
                await self._node.record(sandbox_id, refusal.reason, str(refusal))
                raise refusal
            flight = self._take_off(sandbox_id)
        flight.callers += 1
        try:
            return await asyncio.wait_for(asyncio.shield(flight.task), timeout)
        except TimeoutError:
            raise DeadlineError(f"the agent of sandbox {sandbox_id} did not answer within {timeout:g} s") from None
        except asyncio.CancelledError:
            if flight.task.cancelled():
                await self._raise_stopped(sandbox_id)
            raise
        finally:
            flight.callers -= 1
            if flight.callers == 0 and not flight.task.done():
                self._abandon(sandbox_id, flight)

    async def stop(self, sandbox_id: str) -> Sandbox | None:
        """Begin the sandbox's end and return once that is recorded; None if there never was such a sandbox."""
        sandbox = await self._ending.begin(sandbox_id, "", "")
        flight = self._flights.get(sandbox_id)
        if flight is not None:
            flight.task.cancel()
        if sandbox is not None and sandbox.state not in FINAL_STATES:
            self._ending.clean_up_soon(sandbox_id, after=flight.task if flight else None)
        await self._notify()
        return sandbox

    async def end(self, sandbox_id: str, reason: str, message: str) -> None:
        """The same, for a reason of our own: reaping, superseding, a lost instance."""
        await self._ending.begin(sandbox_id, reason, message)
        await self.stop(sandbox_id)

    async def explain(self, annotations: Mapping[str, str]) -> Explanation:
        """What a pod with these annotations would get if it were started now. Launches and records nothing.

        Raises InvalidInputError naming the annotation that is wrong, and UnavailableError when the cloud cannot say
        what it offers.
        """
        node = self._node
        wanted = requirements(annotations)
        try:
            image = node.policy.image(wanted)
        except ImageNotAllowedError:
            image = ""  # told with the rest
        try:
            offered = await node.cloud.offerings()
            arch = await node.cloud.image_arch(image)
        except ProviderError as error:
            raise UnavailableError(
                f"{node.cloud.name} cannot say what it offers: {error}", reason=error.reason
            ) from error
        now = node.clock.now()
        known = await node.db(node.ledger.account.unavailable, node.cloud.account, now)
        explained = explain(wanted, offered, node.policy, arch, known, now)
        occupied = await node.db(node.ledger.occupied, node.scope.cluster, node.scope.node)
        if explained.refusal is None and 0 <= node.limit <= occupied:
            return dataclasses.replace(explained, refusal=limit_reached(occupied, node.limit))
        return explained

    async def vm_id(self, pod_name: str, pod_namespace: str, *, wait: bool) -> str:
        """The instance id of the pod's newest live sandbox; with `wait`, as soon as there is one."""
        while True:
            rows = await self._node.db(
                self._node.ledger.sandboxes,
                cluster=self._node.scope.cluster,
                node=self._node.scope.node,
                namespace=pod_namespace,
                pod=pod_name,
                states=frozenset(SandboxState) - FINAL_STATES,
            )
            for sandbox in reversed(rows):
                for attempt in reversed(await self._node.db(self._node.ledger.attempts, sandbox.id)):
                    if attempt.instance_id and attempt.unsettled:
                        return attempt.instance_id
            if not wait:
                raise NotFoundError(f"VM ID for {pod_namespace}:{pod_name} was not found")
            async with self._changed:
                await self._changed.wait()

    @property
    def starting_here(self) -> frozenset[str]:
        """Sandboxes whose start this process works on."""
        return frozenset(self._flights)

    async def close(self) -> None:
        """Leave everything as it is for the next process: starts are dropped, not undone."""
        self._closing = True
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)

    def _take_off(self, sandbox_id: str) -> _Flight:
        if self._closing:
            raise UnavailableError("the service is stopping; call again when it is back")
        flight = _Flight(asyncio.create_task(self._starting.run(sandbox_id, self._notify)))
        self._flights[sandbox_id] = flight

        def landed(task: asyncio.Task[Sandbox]) -> None:
            self._flights.pop(sandbox_id, None)
            if not task.cancelled() and isinstance(task.exception(), Exception):
                # Starting has begun the sandbox's end already; what it brought is removed now.
                self._ending.clean_up_soon(sandbox_id)

        flight.task.add_done_callback(landed)
        return flight

    def _abandon(self, sandbox_id: str, flight: _Flight) -> None:
        """The last caller of a start is gone: undo it, unless the service itself is stopping."""
        if self._closing or flight.task.cancelling():
            return
        flight.task.cancel()
        self._ending.abandon_soon(sandbox_id, after=flight.task)

    async def _raise_stopped(self, sandbox_id: str) -> NoReturn:
        if self._closing:
            raise UnavailableError("the service is stopping; call again when it is back")
        raise ConflictError(_cannot_start(await self._get(sandbox_id)))

    async def _record(self, sandbox: Sandbox) -> Sandbox:
        """The row as recorded, now or before. A new one of a pod with a network has its tunnel's id."""
        node = self._node
        if not sandbox.netns_path or await node.db(node.ledger.sandbox, sandbox.id) is not None:
            return await self._add(sandbox)
        network = await node.tunnels.inspect(sandbox.netns_path)
        taken: set[int] = set()
        while True:
            async with node.tunnels.free_id(taken) as tunnel_id:
                document = to_json(network.with_tunnel_id(tunnel_id))
                try:
                    return await self._add(dataclasses.replace(sandbox, tunnel_id=tunnel_id, pod_network=document))
                except TunnelTaken:
                    taken.add(tunnel_id)

    async def _add(self, sandbox: Sandbox) -> Sandbox:
        try:
            pod = f"{sandbox.pod_namespace}/{sandbox.pod_name}"
            event = self._node.event(sandbox.id, "Created", f"the sandbox of pod {pod} was recorded", state="created")
            return await self._node.db(self._node.ledger.add_sandbox, sandbox, event=event)
        except SandboxExists as error:
            existing = error.existing
        if existing.state in FINAL_STATES or existing.state is SandboxState.STOPPING:
            raise ConflictError(f"sandbox {sandbox.id} has ended ({existing.state}); a new one needs a new id")
        return existing

    async def _get(self, sandbox_id: str) -> Sandbox:
        sandbox = await self._node.db(self._node.ledger.sandbox, sandbox_id)
        if sandbox is None or (sandbox.cluster, sandbox.node) != (self._node.scope.cluster, self._node.scope.node):
            raise NotFoundError(f"there is no sandbox {sandbox_id} on this node")
        return sandbox

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _socket_path(self, sandbox_id: str) -> Path:
        return self._node.pods_dir / sandbox_id / "agent.ttrpc"

    def _check(self, request: CreateRequest) -> tuple[str, str]:
        """Namespace and name of the pod, or what is wrong with the request."""
        if not _SANDBOX_ID.fullmatch(request.id):
            raise InvalidInputError(
                "id",
                f"sandbox id {request.id!r} must be letters, digits, '_', '.' and '-', beginning with one of the first",
            )
        path = str(self._socket_path(request.id))
        if len(path.encode()) > SOCKET_PATH_LIMIT:
            raise InvalidInputError(
                "id", f"agent socket path {path} is longer than {SOCKET_PATH_LIMIT} bytes; use a shorter id or PODS_DIR"
            )
        names = {}
        for key in (POD_NAMESPACE, POD_NAME):
            names[key] = request.annotations.get(key, "").strip()
            if not names[key]:
                raise InvalidInputError(key, f"annotation {key} is missing or empty; it must name the pod")
        if request.netns_path:
            try:
                Path(request.netns_path).stat()
            except OSError as error:
                raise InvalidInputError(
                    "network_namespace_path",
                    f"network namespace path {request.netns_path!r} cannot be used ({error.strerror}); it must be that "
                    "of the pod's namespace, or empty for a pod on the host's network",
                ) from None
        requirements(request.annotations)
        initdata(request.annotations.get(INITDATA_ANNOTATION, ""))
        crio = CRIO_NAME.fullmatch(names[POD_NAME])
        return names[POD_NAMESPACE], crio["pod"] if crio else names[POD_NAME]


def _cannot_start(sandbox: Sandbox) -> str:
    why = f" ({sandbox.failure_reason}: {sandbox.failure})" if sandbox.failure else ""
    return f"sandbox {sandbox.id} is {sandbox.state}{why} and cannot be started"
