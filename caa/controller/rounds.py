"""Rounds: look at the cluster, decide, write. Woken by what happens there, and every now and then by nothing.

Every round looks anew. So nothing is lost with a watch, a conflict or this process: what one round could not write, the
next one sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from caa.clock import Clock
from caa.controller.api import Body, ConflictError, ControllerApi
from caa.controller.decide import Decision, decide
from caa.controller.kataconfig import FINALIZER, KataConfig, read
from caa.controller.objects import change, runtime_class
from caa.controller.reading import MANAGED_BY, MANAGER, node, peer_pods, rolling, service_pod
from caa.controller.reading import runtime_class as read_class
from caa.controller.world import RUNTIME_CLASS, Build, Image, World
from caa.kubernetes.answers import AwayError, RefusedError

log = logging.getLogger(__name__)

# Whatever nobody tells: times that run out, and watches that see less than they should.
IDLE_SECONDS = 60.0
# Peer pods of the cluster are not watched: while they keep something up, they are looked for this often.
HELD_SECONDS = 15.0
# Of a burst of changes, one round for all; and at most a fifth of the time is spent on rounds, which list all nodes.
SETTLE_SECONDS = 0.2
_REST, LONGEST_REST = 4.0, 10.0
# Between tries while the API server is away.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# Reasons that somebody has to do something about.
_WARNINGS = frozenset(
    {
        "ConfigIncomplete",
        "Failed",
        "BlockedByExistingKataPods",
        "DuplicateKataConfig",
        "PodVMImageJobFailed",
        "PodVMImageJobStatusUnknown",
    }
)


class Images(Protocol):
    """The pod VM image of the cluster. `trouble` is why the last deletion did not come to its end, "" if it did."""

    trouble: str

    async def look(self) -> Image:
        """How it is. Never raises."""
        ...

    def delete(self) -> None:
        """Begin to delete all that were built, unless that is under way."""
        ...


class Rounds:
    """The work of the leader. `leads` is asked before every write."""

    def __init__(
        self,
        api: ControllerApi,
        daemon_sets: dict[str, Body],
        images: Images,
        clock: Clock,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._api = api
        self._wanted = daemon_sets
        self._images = images
        self._clock = clock
        self._leads = leads
        self._news = asyncio.Event()
        self._trouble = ""
        self._troubles: list[str] = []
        self._live: dict[str, Body] = {}
        self._live_class: Body | None = None
        self._complained = ""

    def wake(self) -> None:
        """Something happened."""
        self._news.set()

    async def run(self) -> None:
        """Round after round, for as long as this leads."""
        wait = FIRST_WAIT
        while True:
            self._news.clear()
            begun = self._clock.monotonic()
            try:
                pause = await self.round()
                wait = FIRST_WAIT
            except ConflictError as error:
                log.info("somebody else wrote at the same time, so again: %s", error)
                pause = FIRST_WAIT
            except AwayError as error:
                log.warning("nothing is done now: %s", error)
                pause, wait = max(wait, error.wait), min(wait * 2, LONGEST_WAIT)
                self._news.clear()
            except RefusedError as error:
                self._complain(f"the API server refuses to be asked: {error}")
                pause, wait = wait, min(wait * 2, LONGEST_WAIT)
                self._news.clear()
            taken = self._clock.monotonic() - begun
            await self._wait(pause)
            await self._clock.sleep(min(max(SETTLE_SECONDS, _REST * taken), LONGEST_REST))

    async def _wait(self, pause: float) -> None:
        """Until there is news, or so many seconds."""
        sleeping = asyncio.ensure_future(self._clock.sleep(pause))
        waking = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()

    async def round(self) -> float:
        """One of them; returns seconds until the next one, if nothing happens. Raises AwayError, RefusedError."""
        world = await self._look()
        decision = decide(world)
        asked = decision.ask_peer_pods
        if asked:
            found = [one async for one in self._api.every_pod()]
            world = replace(world, peer_pods=peer_pods(found))
            decision = decide(world)
        self._troubles = []
        await self._act(world, decision)
        before, self._trouble = self._trouble, self._troubles[-1] if self._troubles else ""
        if before != self._trouble:
            self.wake()  # the status has to tell it
        held = asked or world.trouble or world.image.build in (Build.RUNNING, Build.UNKNOWN)
        return HELD_SECONDS if held else IDLE_SECONDS

    # Looking

    async def _look(self) -> World:
        configs = [read(one) for one in await self._api.kata_configs()]
        if not configs:
            return World(self._clock.now())
        nodes, pods, classes = await asyncio.gather(
            self._api.nodes(), self._api.own_pods(), self._api.runtime_classes()
        )
        self._live = await self._api.daemon_sets()
        ours = {name: one for name, one in self._live.items() if _managed(one)}
        self._live_class = next((one for one in classes if one["metadata"]["name"] == RUNTIME_CLASS), None)
        return World(
            now=self._clock.now(),
            configs=tuple(configs),
            nodes=tuple(node(one) for one in nodes),
            pods=tuple(pod for one in pods if (pod := service_pod(one)) is not None and pod.component in self._wanted),
            components=tuple(self._wanted),
            daemon_sets=frozenset(ours),
            rolling=any(rolling(one) for name, one in self._live.items() if name in self._wanted),
            classes=tuple(read_class(one) for one in classes),
            image=await self._images.look(),
            trouble=self._trouble or self._images.trouble,
        )

    # Acting

    async def _act(self, world: World, do: Decision) -> None:
        configs = {config.name: config for config in world.configs}
        if do.adopt:
            self._still_leads()
            config = configs[do.adopt]
            await self._api.set_finalizers(config, [*config.finalizers, FINALIZER])
            self.wake()  # it has a new version now, which its status needs
            return
        for name, status in do.statuses.items():
            await self._tell(configs[name], status)
        for names, value in ((do.label, ""), (do.unlabel, None)):
            for name in names:
                await self._each(f"node {name}", self._api.label(name, value))
        await self._act_on_objects(do)
        if do.delete_image:
            self._still_leads()
            self._images.delete()
        for name in do.release:
            self._still_leads()
            rest = [one for one in configs[name].finalizers if one != FINALIZER]
            await self._api.set_finalizers(configs[name], rest)

    async def _act_on_objects(self, do: Decision) -> None:
        if do.ensure_daemon_sets:
            for name in self._wanted:
                await self._each(f"DaemonSet {name}", self._ensure_daemon_set(name))
        gone = self._live if do.remove_daemon_sets else self._live.keys() - self._wanted.keys()
        for name in sorted(gone):
            if _managed(self._live[name]):
                await self._each(f"DaemonSet {name}", self._api.delete_daemon_set(name))
        if do.ensure_class:
            await self._each(f"RuntimeClass {RUNTIME_CLASS}", self._ensure_class())
        if do.remove_class:
            await self._each(f"RuntimeClass {RUNTIME_CLASS}", self._api.delete_runtime_class(RUNTIME_CLASS))

    async def _ensure_daemon_set(self, name: str) -> None:
        live = self._live.get(name)
        if live is not None and not _managed(live):
            return  # somebody else's, who sees to it
        if (body := _written(self._wanted[name], live)) is not None:
            await self._api.write_daemon_set(body)
            self.wake()

    async def _ensure_class(self) -> None:
        live = self._live_class
        if live is not None and not _managed(live):
            return  # somebody else's, and as good
        if (body := _written(runtime_class(), live)) is not None:
            await self._api.write_runtime_class(body)
            self.wake()

    async def _each(self, what: str, write: Coroutine[Any, Any, None]) -> None:
        """One of several writes: what is refused is told, and keeps no other one."""
        with contextlib.closing(write):
            self._still_leads()
            await self._tried(what, write)

    async def _tried(self, what: str, write: Coroutine[Any, Any, None]) -> None:
        try:
            await write
        except RefusedError as error:
            self._troubles.append(f"{what}: {error}")
            self._complain(self._troubles[-1])

    async def _tell(self, config: KataConfig, status: Any) -> None:
        """Write a status that is another one, and an event when it is about something else."""
        after = read({"metadata": {"name": config.name}, "status": status}).condition
        if {**config.status, **status} != dict(config.status):
            self._still_leads()
            await self._api.set_status(config, status)
        if after is None or (config.condition is not None and config.condition.key == after.key):
            return
        reason = after.reason or "Completed"
        message = after.message or "All nodes are as they shall be"
        log.info("KataConfig %s: %s: %s", config.name, reason, message)
        try:
            warning = after.reason in _WARNINGS
            await self._api.create_event(config, reason, message, warning=warning, at=self._clock.now())
        except RefusedError as error:
            self._complain(f"events: {error}")

    def _still_leads(self) -> None:
        if not self._leads():
            raise AwayError("another replica may lead now")

    def _complain(self, text: str) -> None:
        if text != self._complained:
            self._complained = text
            log.error("%s", text)


def _managed(body: Body) -> bool:
    return (body["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER


def _written(wanted: Body, live: Body | None) -> Body | None:
    """What to write; None for nothing."""
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    place = {key: wanted["metadata"][key] for key in ("name", "namespace") if key in wanted["metadata"]}
    return change(wanted, live or {"metadata": place}, digest)
