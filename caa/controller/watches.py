"""What kopf watches, so that rounds begin when something happens. It only wakes them: what there is, they look at."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from caa.clock import Clock
from caa.controller.kataconfig import GROUP, PLURAL, VERSION
from caa.controller.reading import node

log = logging.getLogger(__name__)

# A connection that a balancer forgot is found out.
SERVER_SECONDS = 300
# Between the end of the watches and their next beginning; rounds go on meanwhile, by their own time.
AGAIN_SECONDS = 2.0
# Between tries while the API server is away. kopf gives an operator up when they are used up, and this one never.
BACKOFFS = (0.5, 1, 2, 5, 10, 20, *(30,) * 1000)


def registry(wake: Callable[[], None]) -> kopf.OperatorRegistry:
    """The watches. Nodes write their status all the time, so of these only what counts wakes anybody."""
    made = kopf.OperatorRegistry()
    known: dict[str, object] = {}
    kopf.on.login(registry=made)(kopf.login_with_service_account)
    kopf.on.login(registry=made)(kopf.login_with_kubeconfig)

    def happened(**_: Any) -> None:
        wake()

    def node_happened(event: Mapping[str, Any], **_: Any) -> None:
        seen = node(event["object"])
        before = known.get(seen.name)
        if event["type"] == "DELETED":
            known.pop(seen.name, None)
            wake()
        elif before != seen:
            known[seen.name] = seen
            wake()

    kopf.on.event(GROUP, VERSION, PLURAL, registry=made)(happened)
    kopf.on.event("", "v1", "nodes", registry=made)(node_happened)
    kopf.on.event("", "v1", "pods", registry=made)(happened)
    kopf.on.event("apps", "v1", "daemonsets", registry=made)(happened)
    kopf.on.event("node.k8s.io", "v1", "runtimeclasses", registry=made)(happened)
    return made


def settings() -> kopf.OperatorSettings:
    """kopf, kept to watching: no events, annotations, finalizers or peers of its own."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.scanning.disabled = True  # no rights on namespaces and definitions
    made.watching.server_timeout = SERVER_SECONDS
    made.process.ultimate_exiting_timeout = None  # no SIGKILL to a thread that takes its time
    made.networking.error_backoffs = BACKOFFS
    return made


async def watch(namespace: str, wake: Callable[[], None], clock: Clock) -> None:
    """For ever. Whatever ends the watches (kopf gives up at the second 401 of one token), they begin again."""
    while True:
        try:
            await _watch(namespace, wake)
        except Exception as error:
            log.error("the watches begin again: %s: %s", type(error).__name__, error)
        await clock.sleep(AGAIN_SECONDS)
        wake()  # what happened meanwhile, nobody told


async def _watch(namespace: str, wake: Callable[[], None]) -> None:
    """Until it is cancelled. Raises what kopf ended with.

    kopf has a thread and a loop of its own: it takes signals where it can, and ends with all tasks of its loop.
    """
    loop, stop = asyncio.get_running_loop(), threading.Event()
    ended: asyncio.Future[None] = loop.create_future()

    def tell(do: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is over
            loop.call_soon_threadsafe(do, *arguments)

    async def operate() -> None:
        made = registry(lambda: tell(wake))
        try:
            await kopf.operator(
                registry=made, settings=settings(), namespaces=[namespace], standalone=True, stop_flag=stop
            )
        finally:
            stop.set()  # a thread of its loop waits for it, and the loop for that thread

    def run() -> None:
        told: BaseException | None = None
        try:
            asyncio.run(operate())
        except Exception as error:
            told = error
        tell(end, told)

    def end(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_exception(error or RuntimeError("the watches ended"))

    thread = threading.Thread(target=run, name="kopf", daemon=True)
    thread.start()
    try:
        await asyncio.shield(ended)
    finally:
        # Not waited for: it only wakes, and a wake too many does no harm.
        stop.set()
        ended.cancel()
