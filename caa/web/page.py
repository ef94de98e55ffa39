"""The routes of the page. All are GET and change nothing; what they send holds no secret but needs the same proof.

What changes something is in `caa.web.actions`; `proof` is what its forms bring along, "" where there are none.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

import caa
from caa.api.reader import LedgerReader, SandboxRecord
from caa.api.rest.images import Images
from caa.api.rest.routers import Health
from caa.audit import Audit
from caa.clock import Clock
from caa.errors import NotFoundError, UnavailableError
from caa.images.image import OPEN_STATES, PodVmImage
from caa.phases import phases_of
from caa.prices import Prices
from caa.sandbox import SandboxState
from caa.web.actions import proof_of
from caa.web.views import bars, row

# Those that are not over are always shown; those that ended, for a day.
ENDED_FOR = timedelta(days=1)
# More than any node runs. A browser shows this many in about a second.
ROWS = 2000
# How often a stream asks the ledger whether anything happened: one look at an index.
LOOK_SECONDS = 0.5
# The head of the page reads all sandboxes where any changed, so it may be a little older than the rows. In looks.
_STATUS_LOOKS = 4
# A stream without anything to say says so, or proxies close it. In looks.
_QUIET_LOOKS = 30
# Events read in one look; a burst beyond it is read in the next one.
_BURST = 500

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STATIC = FilePath(__file__).parent / "static"
FILES: Mapping[str, str] = {
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
templates = Environment(
    loader=PackageLoader("caa.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
templates.globals["version"] = caa.__version__


@dataclass(frozen=True, slots=True)
class Page:
    """What the page is made from."""

    reader: LedgerReader
    health: Health
    images: Images
    clock: Clock
    node: str
    provider: str
    prices: Prices
    audit: Callable[[], Audit | None] = lambda: None
    """The newest comparison of ledger and cloud."""

    async def whole(self, proof: str = "") -> str:
        """The page itself."""
        now = self.clock.now()
        records = await self.reader.recent(now - ENDED_FOR, ROWS)
        rows = [row(record, self.provider, self.prices, now) for record in records]
        last = await self.reader.last_event_id()
        states = [state.value for state in SandboxState]
        status = await self.status(_counts(records), proof)
        return _render("page.html", rows=rows, states=states, last=last, node=self.node, status=status)

    async def counts(self) -> Counter[str]:
        """The sandboxes on the page, by state."""
        return _counts(await self.reader.recent(self.clock.now() - ENDED_FOR, ROWS))

    async def status(self, counts: Counter[str], proof: str) -> str:
        """Node health, sandboxes by state, the image being built, and what an audit found."""
        open_images = [image for image in await self.images.images() if image.state in OPEN_STATES]
        audit = self.audit()
        return _render(
            "status.html",
            alive=self.health.live(),
            reasons=self.health.ready(),
            counts=[(state.value, counts[state.value]) for state in SandboxState],
            image=_image(open_images[0]) if open_images else None,
            audited=audit is not None,
            differences=audit.differences if audit else (),
            proof=proof,
        )

    async def changed(self, after: int) -> tuple[int, dict[str, str]]:
        """The id of the last event after `after`, and the rows of the sandboxes that events were of."""
        events = await self.reader.trail(after_id=after, limit=_BURST)
        now = self.clock.now()
        rows: dict[str, str] = {}
        for sandbox_id in dict.fromkeys(event.sandbox_id for event in events if event.sandbox_id):
            record = await self.reader.sandbox(sandbox_id)
            if record is not None:
                rows[sandbox_id] = _render("row.html", row=row(record, self.provider, self.prices, now))
        return max((event.id or 0 for event in events), default=after), rows

    async def timeline(self, sandbox_id: str, proof: str = "") -> str:
        """One sandbox. Raises NotFoundError."""
        record = await self.reader.sandbox(sandbox_id)
        if record is None:
            raise NotFoundError(f"there is no sandbox {sandbox_id}")
        events = await self.reader.events(sandbox_id)
        now = self.clock.now()
        shown = row(record, self.provider, self.prices, now)
        last = await self.reader.last_event_id()
        return _render(
            "sandbox.html", row=shown, bars=bars(phases_of(events), now), events=events, last=last, proof=proof
        )

    async def stream(self, after: int, proof: str = "") -> AsyncIterator[str]:
        """Server-sent events: `rows` when something happened, `status` when that differs."""
        said, counts, stale, look = "", Counter[str](), True, 0
        while True:
            try:
                last, rows = await self.changed(after)
                stale = stale or last != after
                if last != after:
                    after = last
                    yield f"event: rows\nid: {after}\ndata: {json.dumps(rows)}\n\n"
                if look % _STATUS_LOOKS == 0:
                    if stale:
                        counts, stale = await self.counts(), False
                    status = await self.status(counts, proof)
                    if status != said:
                        said = status
                        yield f"event: status\ndata: {json.dumps(status)}\n\n"
            except UnavailableError:  # the ledger will be back
                pass
            look += 1
            if look % _QUIET_LOOKS == 0:
                yield ": still here\n\n"
            await asyncio.sleep(LOOK_SECONDS)


def page_router(page: Page) -> APIRouter:
    """The page's routes. They are no part of the interface that is described to programs."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def whole(request: Request) -> Response:
        return HTMLResponse(await page.whole(proof_of(request)), headers=HEADERS)

    @router.get("/sandboxes/{id}")
    async def timeline(request: Request, sandbox_id: Annotated[str, Path(alias="id", max_length=64)]) -> Response:
        return HTMLResponse(await page.timeline(sandbox_id, proof_of(request)), headers=HEADERS)

    @router.get("/events")
    async def stream(request: Request, after: int = 0) -> Response:
        # What a browser that reconnects saw last.
        seen = request.headers.get("last-event-id", "")
        start = int(seen) if seen.isascii() and seen.isdigit() else after
        return StreamingResponse(page.stream(start, proof_of(request)), media_type="text/event-stream", headers=HEADERS)

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in FILES:
            raise NotFoundError(f"there is no file {name}")
        content = await asyncio.to_thread((_STATIC / name).read_bytes)
        return Response(content, headers={**HEADERS, "Content-Type": FILES[name]})

    return router


def login_form(wrong: bool) -> Response:
    """What a browser that has not shown the token gets."""
    return HTMLResponse(_render("login.html", wrong=wrong), status_code=401, headers=HEADERS)


def _counts(records: Iterable[SandboxRecord]) -> Counter[str]:
    return Counter(record.sandbox.state.value for record in records)


def _image(image: PodVmImage) -> dict[str, Any]:
    return {
        "state": image.state.value,
        "phase": image.step or image.phase or "source",
        "done": image.done,
        "total": image.total,
        "percent": f"{100 * image.done / image.total:.0f} %" if image.total else "",
        "failure": image.failure,
    }


def _render(name: str, **values: object) -> str:
    return templates.get_template(name).render(**values)
