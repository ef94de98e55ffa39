"""One connection of a shim and its link to the pod VM: frames go both ways with their stream ids unchanged.

The shim gives a pod up at the first broken connection, so when the link breaks, the shim's connection stays: health
checks are answered here, new calls wait, and a new link is dialled. Then the calls that may be repeated are sent
again; of the others it is unknown whether they took effect, which is what their callers are told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from caa.agentproxy import rewrite
from caa.agentproxy.dial import PermanentDialError, describe
from caa.agentproxy.frame_readers import Head, RequestReader, ResponseReader
from caa.agentproxy.health import serving_frame
from caa.agentproxy.repeatable import CHECK, KEPT_BYTES, REPEATABLE, hold_limit
from caa.agentproxy.streams import Stream
from caa.agentproxy.volumes import PodVolumes
from caa.ttrpc.frames import Code, error_frame

log = logging.getLogger(__name__)

# How long a lost link is dialled anew. The pod would be given up otherwise; a VM that is away for longer than its
# shim waits for a health check (30 s) is not coming back.
REDIAL_SECONDS = 30.0
# What a shim may send while there is no link: more than one whole file chunk (1 MiB). Beyond it, it must wait.
QUEUED_BYTES = 2 << 20
# A link that broke before it carried anything is dialled again after this, not at once, lest a VM whose agent is down
# makes us spin.
UNPROVED_PAUSE_SECONDS = 0.25
# A silent link that held for this long counts as good, so the next loss has the whole time again.
PROVED_SECONDS = 5.0

OpenLink = Callable[[], Awaitable[Stream]]
"""Dials until it has a link, or raises PermanentDialError. Whoever gives up cancels it."""


@dataclass(slots=True)
class _Call:
    """A request without its answer yet. `repeat` is the whole frame if the call may be sent again."""

    service: str
    method: str
    repeat: bytes | None
    sent: bool  # handed to a link, now or earlier


class Relay:
    """Owns the shim's stream from the start, and a link from the first byte on until `close`."""

    def __init__(
        self,
        name: str,
        shim: Stream,
        open_link: OpenLink,
        redial_seconds: float,
        volumes: PodVolumes,
        on_closed: Callable[[Relay], None],
    ) -> None:
        self._name = name
        self._shim = shim
        self._open_link = open_link
        self._redial_seconds = redial_seconds
        self._volumes = volumes
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._requests = RequestReader(hold_limit)
        self._responses = ResponseReader()
        self._calls: dict[int, _Call] = {}
        self._link: Stream | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._queue: list[bytes | bytearray | memoryview] = []
        self._queued = 0
        self._dropping = False  # the rest of a request whose beginning went to a link that broke
        self._had_link = False
        self._proved = True
        self._link_since = self._give_up_at = 0.0
        self._closed = False
        shim.on_data, shim.on_lost, shim.on_drained = self._from_shim, self._shim_lost, self._balance

    @property
    def linked(self) -> bool:
        """There is a link to the pod VM now."""
        return self._link is not None

    def close(self) -> None:
        """End both sides. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._shim.close()
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._dialling is not None:
            self._dialling.cancel()
        self._on_closed(self)

    # From the shim.

    def _from_shim(self, chunk: memoryview) -> None:
        out: list[bytes | memoryview] = []
        for head, data in self._requests.feed(chunk):
            if head is not None:
                self._dropping = False
                goes_on = self._begin(head, data)
                if goes_on is not None:
                    out.append(goes_on)
            elif not self._dropping:
                out.append(data)
        if out:
            self._send(out[0] if len(out) == 1 else b"".join(out))
        self._balance()

    def _begin(self, head: Head, data: memoryview) -> bytes | memoryview | None:
        """A frame begins: note the call. Returns what goes to the VM instead of `data`, None for nothing."""
        if not head.is_request:
            return data
        name = (head.service, head.method)
        if name == CHECK and self._link is None and self._had_link:
            self._shim.write(serving_frame(head.stream_id))
            return None
        may_repeat = name in REPEATABLE and head.whole and len(data) <= KEPT_BYTES and not head.flags
        repeat = bytes(data) if may_repeat else None
        self._calls[head.stream_id] = _Call(head.service, head.method, repeat, self._link is not None)
        if name == (rewrite.SERVICE, rewrite.METHOD) and head.whole:
            return rewrite.create_container(data, self._volumes)
        return data

    def _send(self, data: bytes | memoryview) -> None:
        if self._link is not None:
            self._link.write(data)
            return
        self._queue.append(bytes(data))
        self._queued += len(data)
        if self._dialling is None and not self._closed:
            self._give_up_at = self._loop.time() + self._redial_seconds
            self._dialling = asyncio.create_task(self._dial())

    def _shim_lost(self, error: Exception) -> None:
        log.info("sandbox %s: the shim's connection ended: %s", self._name, describe(error))
        self.close()

    # The link.

    async def _dial(self) -> None:
        try:
            async with asyncio.timeout_at(self._give_up_at):
                if not self._proved:
                    await asyncio.sleep(UNPROVED_PAUSE_SECONDS)
                link = await self._open_link()
        except (TimeoutError, PermanentDialError) as error:
            why = str(error) or f"no new link within {self._redial_seconds:g} s"
            log.warning("sandbox %s: giving up its shim's connection: %s", self._name, why)
            self._dialling = None
            self.close()
            return
        except Exception:
            log.exception("sandbox %s: giving up its shim's connection", self._name)
            self._dialling = None
            self.close()
            return
        self._dialling = None
        if self._closed:
            link.close()
        else:
            self._attach(link)

    def _attach(self, link: Stream) -> None:
        if self._had_link:
            log.info("sandbox %s: the link to the pod VM is back; %d calls go on", self._name, len(self._calls))
        link.on_data, link.on_lost, link.on_drained = self._from_link, self._link_lost, self._balance
        self._link, self._had_link, self._proved = link, True, False
        self._link_since = self._loop.time()
        # In order of their ids, which some ttrpc servers insist on; what is queued came later.
        again = sorted((stream_id, call.repeat) for stream_id, call in self._calls.items() if call.sent and call.repeat)
        out = [repeat for _, repeat in again if repeat] + self._queue
        self._queue, self._queued = [], 0
        for call in self._calls.values():
            call.sent = True
        if out:
            link.write(b"".join(out))
        self._balance()

    def _from_link(self, chunk: memoryview) -> None:
        delivery = self._responses.feed(chunk)
        for stream_id in delivery.answered:
            self._proved = True
            self._calls.pop(stream_id, None)
        for data in delivery.data:
            self._shim.write(data)
        self._balance()

    def _link_lost(self, error: Exception) -> None:
        if self._closed:
            return
        log.warning("sandbox %s: lost the link to the pod VM: %s", self._name, describe(error))
        self._link = None
        self._responses.reset()
        self._dropping = self._requests.inside_frame
        now = self._loop.time()
        if self._proved or now - self._link_since >= PROVED_SECONDS:
            self._proved = True
            self._give_up_at = now + self._redial_seconds
        # While a link is up nothing is queued, so all these were sent.
        for stream_id, call in list(self._calls.items()):
            if call.repeat is None or (call.service, call.method) == CHECK:
                del self._calls[stream_id]
                self._shim.write(self._answer_instead(stream_id, call))
        self._dialling = asyncio.create_task(self._dial())
        self._balance()

    def _answer_instead(self, stream_id: int, call: _Call) -> bytes:
        if call.repeat is not None:
            return serving_frame(stream_id)
        text = f"the connection to the pod VM was lost during {call.method or 'a call'}; its outcome is unknown"
        return error_frame(stream_id, Code.UNAVAILABLE, text)

    def _balance(self) -> None:
        """Who writes faster than the other side reads must wait."""
        if self._closed:
            return
        shim_slow = self._shim.congested
        if self._link is None:
            self._shim.set_reading(self._queued < QUEUED_BYTES and not shim_slow)
        else:
            self._shim.set_reading(not self._link.congested)
            self._link.set_reading(not shim_slow)
