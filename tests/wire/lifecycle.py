"""A small lifecycle of its own behind the front doors: records what it was asked, answers as it is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from caa.sandbox import CreateRequest, Door, Sandbox, SandboxState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def sandbox(sandbox_id: str) -> Sandbox:
    return Sandbox(
        id=sandbox_id,
        cluster="c",
        node="n",
        pod_namespace="default",
        pod_name="p",
        door=Door.TTRPC,
        annotations={},
        netns_path="",
        socket_path=f"/run/peerpod/pods/{sandbox_id}/agent.ttrpc",
        state=SandboxState.CREATED,
        created_at=NOW,
        changed_at=NOW,
    )


class RecordingLifecycle:
    """`failing` maps a verb to what it raises; a verb in `holding` waits until `go` is set."""

    def __init__(self) -> None:
        self.failing: dict[str, Exception] = {}
        self.holding: set[str] = set()
        self.go = asyncio.Event()
        self.asked: list[tuple[str, object]] = []
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.finished: list[str] = []

    async def _do(self, verb: str, what: object) -> None:
        self.asked.append((verb, what))
        self.begun.append(verb)
        try:
            if verb in self.holding:
                await self.go.wait()
            if verb in self.failing:
                raise self.failing[verb]
        except asyncio.CancelledError:
            self.cancelled.append(verb)
            raise
        self.finished.append(verb)

    async def create(self, request: CreateRequest) -> Sandbox:
        await self._do("create", request)
        return sandbox(request.id)

    async def start(self, sandbox_id: str, *, timeout: float | None = None) -> Sandbox:
        await self._do("start", (sandbox_id, timeout))
        return sandbox(sandbox_id)

    async def stop(self, sandbox_id: str) -> Sandbox | None:
        await self._do("stop", sandbox_id)
        return None

    async def vm_id(self, pod_name: str, pod_namespace: str, *, wait: bool) -> str:
        await self._do("vm_id", (pod_name, pod_namespace, wait))
        return f"i-{pod_name}"
