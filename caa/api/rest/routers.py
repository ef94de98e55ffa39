"""The routes. Thin: each reads its input, makes one call and gives the answer its form."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Path, Query, Request, Response

import caa
from caa import logs
from caa.api.reader import SandboxRecord
from caa.api.rest import problems
from caa.api.rest.schemas import (
    PAGE_DEFAULT,
    PAGE_LIMIT,
    EventPage,
    Healthy,
    NewSandbox,
    PodToSize,
    SandboxId,
    SandboxPage,
    SandboxView,
    SizingView,
    Stopped,
    StoppedState,
    Version,
    cursor_text,
    event_view,
    read_cursor,
    sandbox_view,
    sizing_view,
    stopped_view,
)
from caa.errors import NotFoundError, UnavailableError
from caa.explain import Explanation
from caa.ledger import Cursor
from caa.sandbox import CreateRequest, Door, Event, Sandbox, SandboxState

# What Kata's own shim allows a start by default.
START_SECONDS = 600.0
# A caller who would wait for longer than a day has made a mistake.
LONGEST_START_SECONDS = 86400.0


class Lifecycle(Protocol):
    """The three verbs, and what a start would do. Cancelling `start` means that its caller is gone."""

    async def create(self, request: CreateRequest) -> Sandbox:
        """Record a sandbox; the same id again gives the same answer."""
        ...

    async def start(self, sandbox_id: str, *, timeout: float | None = None) -> Sandbox:
        """Launch its instance; returns when the agent answers."""
        ...

    async def explain(self, annotations: Mapping[str, str]) -> Explanation:
        """What a pod with these annotations would get now."""
        ...

    async def stop(self, sandbox_id: str) -> Sandbox | None:
        """Begin its end; None if there never was such a sandbox."""
        ...


class Reader(Protocol):
    """What is read of the ledger: `caa.api.reader.LedgerReader`."""

    async def sandbox(self, sandbox_id: str) -> SandboxRecord | None:
        """One sandbox, or None."""
        ...

    async def sandboxes(
        self,
        *,
        node: str | None = None,
        states: Collection[SandboxState] | None = None,
        namespace: str | None = None,
        pod: str | None = None,
        limit: int | None = None,
        after: Cursor | None = None,
    ) -> list[SandboxRecord]:
        """Those that match every filter, oldest first."""
        ...

    async def events(self, sandbox_id: str, after_id: int = 0, limit: int | None = None) -> list[Event]:
        """The trail of a sandbox."""
        ...


class Health(Protocol):
    """How the service is."""

    def live(self) -> bool:
        """Whether the process works at all; if not, it must be started anew."""
        ...

    def ready(self) -> list[str]:
        """Why it cannot take calls now; empty when it can."""
        ...

    def started(self) -> bool:
        """Whether it has finished starting."""
        ...


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its description."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    described = {
        400: "The input is wrong.",
        401: "The caller is not known (TCP only).",
        404: "No such sandbox.",
        409: "The sandbox's state does not allow this.",
        422: "The input does not fit its schema, or the request cannot be fulfilled.",
        502: "The pod VM could not be had.",
        503: "The service cannot take calls now.",
        504: "The time is up.",
    }
    return {
        **{status: {"description": described[status], "content": content} for status in statuses},
        "default": {"description": "Any other error.", "content": content},
    }


KnownId = Annotated[SandboxId, Path(alias="id", description="The sandbox's id.")]


def sandbox_router(lifecycle: Lifecycle, reader: Reader) -> APIRouter:
    """Sandboxes: the three verbs and what there is to read."""
    router = APIRouter(prefix="/v1/sandboxes", tags=["sandboxes"])

    async def known(sandbox_id: str) -> SandboxRecord:
        record = await reader.sandbox(sandbox_id)
        if record is None:
            raise NotFoundError(f"there is no sandbox {sandbox_id}")
        return record

    @router.post(
        "",
        operation_id="createSandbox",
        status_code=201,
        responses={
            201: {"description": "The sandbox was recorded."},
            200: {"description": "The sandbox was there already.", "model": SandboxView},
            **errors(400, 401, 409, 422, 503),
        },
    )
    async def create(new: NewSandbox, response: Response) -> SandboxView:
        """Record a sandbox and learn where its agent will be. Asks no cloud. Safe to repeat."""
        with logs.about(new.id):
            existed = await reader.sandbox(new.id) is not None
            await lifecycle.create(
                CreateRequest(
                    id=new.id, annotations=new.annotations, netns_path=new.network_namespace_path, door=Door.REST
                )
            )
            response.status_code = 200 if existed else 201
            response.headers["Location"] = f"/v1/sandboxes/{new.id}"
            return sandbox_view(await known(new.id))

    @router.get("", operation_id="listSandboxes", responses=errors(400, 401, 422, 503))
    async def list_sandboxes(
        state: Annotated[list[SandboxState] | None, Query(description="May be given more than once.")] = None,
        namespace: Annotated[str | None, Query(description="The pod's namespace.")] = None,
        pod: Annotated[str | None, Query(description="The pod's name.")] = None,
        node: Annotated[str | None, Query(description="The worker node.")] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = PAGE_DEFAULT,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    ) -> SandboxPage:
        """The sandboxes that match every filter given, oldest first, a page at a time."""
        found = await reader.sandboxes(
            node=node,
            states=state or None,
            namespace=namespace,
            pod=pod,
            limit=limit + 1,  # one more says whether there is a next page
            after=read_cursor(cursor) if cursor else None,
        )
        page = found[:limit]
        return SandboxPage(
            sandboxes=[sandbox_view(record) for record in page],
            next_cursor=cursor_text(page[-1].sandbox) if len(found) > limit else None,
        )

    @router.get("/{id}", operation_id="getSandbox", responses=errors(401, 404, 422, 503))
    async def show(sandbox_id: KnownId) -> SandboxView:
        """One sandbox."""
        return sandbox_view(await known(sandbox_id))

    @router.get("/{id}/events", operation_id="listSandboxEvents", responses=errors(401, 404, 422, 503))
    async def events(
        sandbox_id: KnownId,
        after: Annotated[int, Query(ge=0, le=2**63 - 1, description="The id of the last event seen.")] = 0,
        limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT)] = PAGE_DEFAULT,
    ) -> EventPage:
        """What happened to a sandbox, oldest first, a page at a time."""
        await known(sandbox_id)
        found = await reader.events(sandbox_id, after, limit)
        views = [event_view(event) for event in found]
        return EventPage(events=views, next_after=views[-1].id if views else after)

    @router.post("/{id}/start", operation_id="startSandbox", responses=errors(401, 404, 409, 422, 502, 503, 504))
    async def start(
        request: Request,
        sandbox_id: KnownId,
        timeout: Annotated[
            float,
            Query(gt=0, le=LONGEST_START_SECONDS, allow_inf_nan=False, description="Seconds this caller waits."),
        ] = START_SECONDS,
    ) -> SandboxView:
        """Launch the sandbox's instance and wait until its agent answers. Safe to repeat, and to call twice at once.

        A caller that closes the connection meanwhile has given up: when nobody else waits, the start is undone.
        """
        with logs.about(sandbox_id):
            await _while_connected(request, lifecycle, sandbox_id, timeout)
            return sandbox_view(await known(sandbox_id))

    @router.post("/{id}/stop", operation_id="stopSandbox", responses=errors(401, 422, 503))
    async def stop(sandbox_id: KnownId) -> Stopped:
        """Begin the sandbox's end; the service finishes it, whoever is still listening. Safe to repeat.

        An id nobody knows is a success too, with the state `unknown`.
        """
        return await _stop(lifecycle, sandbox_id)

    @router.delete(
        "/{id}",
        operation_id="deleteSandbox",
        status_code=202,
        responses={
            202: {"description": "The sandbox's end has begun."},
            204: {"description": "Nothing is left of it, or there never was such a sandbox."},
            **errors(401, 422, 503),
        },
        response_model=Stopped,
    )
    async def delete(sandbox_id: KnownId) -> Stopped | Response:
        """The same as stop. The record of the sandbox stays."""
        stopped = await _stop(lifecycle, sandbox_id)
        return stopped if stopped.state is StoppedState.STOPPING else Response(status_code=204)

    return router


def sizing_router(lifecycle: Lifecycle) -> APIRouter:
    """Which instance a pod would get."""
    router = APIRouter(prefix="/v1/sizing", tags=["sizing"])

    @router.post("/explain", operation_id="explainSizing", responses=errors(400, 401, 422, 503))
    async def explain(pod: PodToSize) -> SizingView:
        """What a pod with these annotations would get if it were started now, and why not something else.

        Launches and records nothing. That nothing fits is an answer, too: `chosen` is null, and `refusal` says why.
        """
        return sizing_view(await lifecycle.explain(pod.annotations))

    return router


def health_router(health: Health) -> APIRouter:
    """The service's own version and how it is. Health is told to anybody, so that an orchestrator needs no token."""
    router = APIRouter(tags=["service"])

    @router.get("/v1/version", operation_id="getVersion", responses=errors(401))
    async def version() -> Version:
        """The service's version."""
        return Version(version=caa.__version__)

    @router.get("/livez", operation_id="live", response_model=Healthy, responses=errors(503))
    async def live() -> Healthy | Response:
        """Whether the process works at all."""
        return Healthy() if health.live() else _unwell("not-live", ["the service does not work"])

    @router.get("/readyz", operation_id="ready", response_model=Healthy, responses=errors(503))
    async def ready() -> Healthy | Response:
        """Whether the service takes calls now."""
        reasons = health.ready()
        return _unwell("not-ready", reasons) if reasons else Healthy()

    @router.get("/startupz", operation_id="started", response_model=Healthy, responses=errors(503))
    async def started() -> Healthy | Response:
        """Whether the service has finished starting."""
        return Healthy() if health.started() else _unwell("not-started", ["the service is starting"])

    return router


def _unwell(slug: str, reasons: list[str]) -> Response:
    return problems.Problem(
        type=problems.TYPE_PREFIX + slug,
        title="The service is not well",
        status=503,
        detail="; ".join(reasons),
        reason="".join(word.title() for word in slug.split("-")),
        reasons=reasons,
    ).response()


async def _while_connected(request: Request, lifecycle: Lifecycle, sandbox_id: str, timeout: float) -> None:
    """Start, and cancel the start when the caller hangs up.

    When this call itself is cancelled the server is closing. Then the start is let go of, not cancelled: it is the
    lifecycle's to drop, and must not be undone as if the caller had gone.
    """
    starting = asyncio.create_task(lifecycle.start(sandbox_id, timeout=timeout))
    starting.add_done_callback(_look_at)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({starting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        await asyncio.wait({starting})
    except asyncio.CancelledError:
        raise UnavailableError("the service is stopping; call again when it is back") from None
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
    if starting.cancelled():  # nobody reads this answer
        raise UnavailableError("the caller is gone")
    starting.result()


def _look_at(task: asyncio.Task[Sandbox]) -> None:
    """Take note of a result nobody waits for, or asyncio complains."""
    if not task.cancelled():
        task.exception()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# Stops whose caller may be gone; the event loop itself keeps only weak references.
_stops: set[asyncio.Task[Sandbox | None]] = set()


async def _stop(lifecycle: Lifecycle, sandbox_id: str) -> Stopped:
    with logs.about(sandbox_id):
        stopping = asyncio.create_task(lifecycle.stop(sandbox_id))
    _stops.add(stopping)
    stopping.add_done_callback(_stops.discard)
    return stopped_view(sandbox_id, await asyncio.shield(stopping))
