"""Brings what Kubernetes shows in line with the ledger, beside the life of the sandboxes.

Nothing is queued but the ids of sandboxes with news: what there is to tell is read from the ledger when it can be told.
So an API server that is away, for however long, costs no memory and loses nothing, and no sandbox waits for it longer
than BEFORE_LAUNCH_SECONDS.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from caa.clock import Clock
from caa.directvolumes import pod_uid
from caa.errors import UnavailableError
from caa.images.image import PodVmImage
from caa.kubernetes.answers import ABSENT, AwayError, RefusedError
from caa.kubernetes.api import KubernetesApi
from caa.kubernetes.nodeevents import KINDS, NodeEvent, image_event, node_events
from caa.kubernetes.objects import RESOURCE, event, node_event, node_label, peer_pod, peer_pod_name, reference
from caa.kubernetes.podevents import pod_events
from caa.kubernetes.whichpod import is_that_pod
from caa.ledger import Ledger
from caa.ledgerthreads import LedgerThreads
from caa.sandbox import FINAL_STATES, LIVE_STATES, Sandbox, SandboxState
from providers.base import OwnerScope

log = logging.getLogger(__name__)

# A PeerPod is a few milliseconds' work. A start does not wait longer for it: the ledger and the owner tags find the
# instance too, and the object follows.
BEFORE_LAUNCH_SECONDS = 2.0
# Between two tries while the API server is away: soon at first, then such that a node's tries are no load.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
# A kubelet that registers anew drops the resource; until it is back, no peer pod is scheduled here.
NODE_SECONDS = 10.0
# What the API server keeps events for, unless told otherwise. An older one would only confuse.
EVENT_LIFE = timedelta(hours=1)
# Of the pod VM image and of the configuration, told at once or kept for an API server that is away: more than a build
# has, and no load on memory.
IMAGE_EVENTS = 50


@dataclass(slots=True)
class _Told:
    """What Kubernetes has been told of one sandbox."""

    pod_uid: str | None = None
    pod_gone: bool = False
    event_id: int = 0
    peer_pod: tuple[str, str] | None = None  # namespace and name, once it may be there
    instance_id: str | None = None  # in the PeerPod; None when not known


@dataclass(slots=True)
class _State:
    """What is kept in memory: one entry for each live sandbox, and for those that ended since."""

    dirty: dict[str, None] = field(default_factory=dict)  # in the order of their news
    told: dict[str, _Told] = field(default_factory=dict)


class KubernetesReports:
    """Pod events, PeerPods and the node's resource of one node. See `caa.kubernetes.port.PodReports`."""

    def __init__(
        self,
        api: KubernetesApi,
        ledger: Ledger,
        threads: LedgerThreads,
        scope: OwnerScope,
        cloud: str,
        limit: Callable[[], int],
        clock: Clock,
        about: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """`about` refers to what has the events that are of no Pod; the Node, if not given."""
        self._api = api
        self._ledger = ledger
        self._threads = threads
        self._scope = scope
        self._cloud = cloud
        self._limit = limit
        self._clock = clock
        self._about = about or (lambda: reference("Node", scope.node, uid=scope.node))  # as the kubelet has it
        self._state = _State()
        self._news = asyncio.Event()
        self._away = False
        self._advertised = False
        self._complained: set[str] = set()
        self._node_event_id = 0
        self._image_event: NodeEvent | None = None
        self._image_events: deque[NodeEvent] = deque(maxlen=IMAGE_EVENTS)

    # For the use cases

    def changed(self, sandbox_id: str) -> None:
        """The ledger has something new of the sandbox, or with "" of the node."""
        self._state.dirty[sandbox_id] = None
        self._news.set()

    def image_seen(self, image: PodVmImage) -> None:
        """How far the pod VM image is. May be called as often as one likes."""
        told = image_event(image)
        if told is not None and (self._image_event is None or told.key != self._image_event.key):
            self._image_event = told
            self._image_events.append(told)
            self._news.set()

    async def before_launch(self, sandbox: Sandbox) -> None:
        """Have the PeerPod written, if the API server answers in time; else it follows."""
        if self._away:
            return  # the launch is news, so it will be looked at again anyway
        try:
            async with asyncio.timeout(BEFORE_LAUNCH_SECONDS):
                await self._write_peer_pod(sandbox, "")
        except (AwayError, TimeoutError) as error:
            self._away = True  # until the other loop, which has news in a moment, finds otherwise
            log.warning("the PeerPod of sandbox %s is written later: %s", sandbox.id, str(error) or "no answer in time")
        except RefusedError as error:
            self._complain("PeerPod objects", error)
        except Exception:  # a defect here must not keep a pod from starting
            log.exception("the PeerPod of sandbox %s could not be written", sandbox.id)

    # The loops

    async def run(self) -> None:
        """Tell what is new, and keep the node's resource, for ever."""
        await asyncio.gather(self._run_reports(), self._run_node())

    async def _run_reports(self) -> None:
        wait = FIRST_WAIT
        begun = False
        while True:
            try:
                if not begun:
                    await self._begin()
                    begun = True
                await self._report_all()
            except (AwayError, UnavailableError) as error:
                if not self._away:
                    log.warning("Kubernetes is told later, sandboxes go on: %s", error)
                self._away = True
                asked_for = error.wait if isinstance(error, AwayError) else 0.0
                await self._clock.sleep(max(wait, min(asked_for, LONGEST_WAIT)))
                wait = min(wait * 2, LONGEST_WAIT)
                continue
            except Exception:
                log.exception("Kubernetes could not be told; the next news are tried again")
                await self._clock.sleep(LONGEST_WAIT)
                continue
            if self._away:
                log.info("the API server answers again, and has been told everything")
            self._away, wait = False, FIRST_WAIT
            await self._news.wait()

    async def _begin(self) -> None:
        """What an earlier process may have left untold: of every sandbox that lives, and of every PeerPod."""
        try:
            found = await self._api.peer_pods(node_label(self._scope.cluster, self._scope.node))
        except RefusedError as error:
            self._complain("PeerPod objects", error)
            found = []
        for sandbox_id, namespace, name, instance_id in found:
            told = self._state.told.setdefault(sandbox_id, _Told())
            told.peer_pod, told.instance_id = (namespace, name), instance_id
            self.changed(sandbox_id)
        live = await self._threads.run(
            self._ledger.sandboxes, cluster=self._scope.cluster, node=self._scope.node, states=LIVE_STATES
        )
        for sandbox in live:
            self.changed(sandbox.id)
        self.changed("")

    async def _report_all(self) -> None:
        self._news.clear()
        while self._image_events:
            await self._tell(self._image_events[0])
            self._image_events.popleft()
        for sandbox_id in list(self._state.dirty):
            del self._state.dirty[sandbox_id]
            try:
                await (self._report(sandbox_id) if sandbox_id else self._report_node())
            except BaseException:
                self._state.dirty[sandbox_id] = None
                raise

    async def _report_node(self) -> None:
        fresh = self._clock.now() - EVENT_LIFE
        trail = await self._threads.run(
            self._ledger.trail,
            after_id=self._node_event_id,
            limit=IMAGE_EVENTS,
            sandbox_id="",
            node=self._scope.node,
            kinds=tuple(KINDS),
            since=fresh,
        )
        for told in node_events(trail, self._scope.cluster):
            await self._tell(told)
        if trail:
            self._node_event_id = trail[-1].id or 0

    async def _tell(self, told: NodeEvent) -> None:
        if told.at <= self._clock.now() - EVENT_LIFE:
            return
        try:
            await self._api.create_event(node_event(self._about(), self._scope.node, told))
        except RefusedError as error:
            self._complain("events", error)

    async def _report(self, sandbox_id: str) -> None:
        told = self._state.told.setdefault(sandbox_id, _Told())
        sandbox = await self._threads.run(self._ledger.sandbox, sandbox_id)
        trail = await self._threads.run(self._ledger.events, sandbox_id)
        if sandbox is None:
            # Pruned after its end, which the trail keeps; or the ledger is another one, which proves nothing.
            if told.peer_pod is not None and any(one.kind == "Ended" for one in trail):
                await self._release(told)
            self._state.told.pop(sandbox_id, None)
            return
        if sandbox.state in FINAL_STATES:
            await self._release(told)
        elif sandbox.state is not SandboxState.CREATED:
            attempts = await self._threads.run(self._ledger.attempts, sandbox_id)
            open_attempt = next((one for one in attempts if one.unsettled), None)
            if open_attempt is not None:
                await self._write_peer_pod_or_complain(sandbox, open_attempt.instance_id)
        # A stale event is not worth asking who the Pod is.
        fresh = self._clock.now() - EVENT_LIFE
        for one in pod_events(trail):
            assert one.source.id is not None
            if one.source.id <= told.event_id:
                continue
            if one.source.at > fresh and (uid := await self._pod_uid(sandbox, told)):
                try:
                    await self._api.create_event(event(sandbox, uid, one))
                except RefusedError as error:  # the namespace is going, or a right is missing
                    self._complain("events", error)
            told.event_id = one.source.id
        if sandbox.state in FINAL_STATES and sandbox_id not in self._state.dirty:
            self._state.told.pop(sandbox_id, None)

    async def _write_peer_pod_or_complain(self, sandbox: Sandbox, instance_id: str) -> None:
        try:
            await self._write_peer_pod(sandbox, instance_id)
        except RefusedError as error:
            self._complain("PeerPod objects", error)

    async def _write_peer_pod(self, sandbox: Sandbox, instance_id: str) -> None:
        told = self._state.told.setdefault(sandbox.id, _Told())
        if told.instance_id is not None and instance_id in ("", told.instance_id):
            return
        uid = await self._pod_uid(sandbox, told)
        if not uid:
            return
        # Noted first: a call that is cut off may have written it.
        told.peer_pod = (sandbox.pod_namespace, peer_pod_name(sandbox))
        if told.instance_id is None:
            new = await self._api.create_peer_pod(peer_pod(sandbox, uid, self._cloud, instance_id))
            told.instance_id = instance_id if new or not instance_id else None
        if told.instance_id != instance_id:
            await self._api.set_instance(*told.peer_pod, instance_id)
            told.instance_id = instance_id

    async def _release(self, told: _Told) -> None:
        if told.peer_pod is None:
            return
        try:
            await self._api.release_peer_pod(*told.peer_pod)
        except RefusedError as error:
            self._complain("PeerPod objects", error)
            return
        told.peer_pod = told.instance_id = None

    async def _pod_uid(self, sandbox: Sandbox, told: _Told) -> str:
        """The UID of the sandbox's Pod; "" when that is gone."""
        if told.pod_uid is None and not told.pod_gone:
            told.pod_uid = pod_uid(sandbox.annotations) or None
        if told.pod_uid is None and not told.pod_gone:
            try:
                pod = await self._api.pod(sandbox.pod_namespace, sandbox.pod_name)
            except RefusedError as error:
                self._complain("Pods", error)
                return ""
            if pod is None or not is_that_pod(pod, sandbox):
                told.pod_gone = True
            else:
                told.pod_uid = str(pod["uid"])
        return told.pod_uid or ""

    # The node

    async def _run_node(self) -> None:
        while True:
            try:
                await self._keep_resource()
            except AwayError:
                pass  # the other loop says so
            except RefusedError as error:
                self._complain(f"node {self._scope.node}", error)
            except Exception:
                log.exception("the resource %s of the node could not be looked after", RESOURCE)
            await self._clock.sleep(NODE_SECONDS)

    async def _keep_resource(self) -> None:
        node, limit = self._scope.node, self._limit()
        if limit < 0:
            if self._advertised:
                await self._api.advertise(node, None)
                self._advertised = False
            return
        now = await self._api.advertised(node)
        if now != str(limit):
            await self._api.advertise(node, limit)
            log.info("node %s advertises %s: %d (was %s)", node, RESOURCE, limit, now or "not there")
        self._advertised = True

    def _complain(self, what: str, error: RefusedError) -> None:
        """Once for each kind of thing and answer, since nothing changes by itself."""
        key = f"{what} {error.status}"
        if key not in self._complained:
            self._complained.add(key)
            hint = " (is the definition of PeerPod installed?)" if "PeerPod" in what and error.status == ABSENT else ""
            log.warning("the API server refuses %s, which are left out: %s%s", what, error, hint)
