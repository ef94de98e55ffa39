"""What to do about the KataConfigs of a cluster: one look -> one decision. Pure, and nothing is remembered between two.

A round sees the cluster, decides, and acts; the next one sees what came of it. So the status tells what was seen before
the actions of its round, and a controller that is killed between two writes goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from caa.controller import status as told
from caa.controller.kataconfig import Condition, KataConfig, stamped
from caa.controller.nodes import Node, NodeList, Seen, look
from caa.controller.selector import SelectorError, matcher
from caa.controller.world import RUNTIME_CLASS, Build, PeerPod, World

# An install that is under way. A node that failed is none of it: it holds up neither the rest nor a deletion.
_PENDING = frozenset({NodeList.INSTALLING, NodeList.WAITING_TO_INSTALL})
# Nodes that shall run peer pods.
_KATA = _PENDING | {NodeList.INSTALLED, NodeList.FAILED_TO_INSTALL}


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write, in this order: finalizer, statuses, labels, objects, image, and at last the finalizer's removal.

    `objects` are to be as they ship; `remove` names those of ours that go: DaemonSets and the RuntimeClass.
    """

    ask_peer_pods: bool = False
    """Nothing was decided yet: look for peer pods, and decide again."""
    adopt: str = ""
    """The KataConfig that is to have our finalizer."""
    statuses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    label: tuple[str, ...] = ()
    unlabel: tuple[str, ...] = ()
    ensure_daemon_sets: bool = False
    ensure_class: bool = False
    remove_daemon_sets: bool = False
    remove_class: bool = False
    delete_image: bool = False
    release: tuple[str, ...] = ()
    """KataConfigs whose finalizer of ours is to go."""


def decide(world: World) -> Decision:
    """What to do now."""
    order = sorted(world.configs, key=lambda config: (config.created, config.name))
    if not order:
        return Decision()
    honoured, others = order[0], order[1:]
    statuses = {other.name: _ignored(other, honoured, world) for other in others}
    release = tuple(other.name for other in others if other.deleting and other.ours)
    mine = _removed(world, honoured) if honoured.deleting else _kept(world, honoured)
    return replace(mine, statuses={**mine.statuses, **statuses}, release=mine.release + release)


def _ignored(config: KataConfig, honoured: KataConfig, world: World) -> dict[str, Any]:
    condition = told.duplicate(honoured.name)
    return {"conditions": [stamped(condition, config.condition, world.now)]}


# A KataConfig that stays


def _kept(world: World, config: KataConfig) -> Decision:
    """Install and update: nodes come and go by their labels."""
    try:
        chosen = _chosen(world, config)
    except SelectorError as error:
        seen = _look(world, {node.name for node in world.nodes if node.labelled})
        condition = told.failed(f"kataConfigPoolSelector: {error}")
        return Decision(adopt=_adopt(config), statuses=_status(world, config, seen, condition))
    leaving = [node for node in world.nodes if node.labelled and node.name not in chosen]
    if leaving and world.peer_pods is None:
        return Decision(ask_peer_pods=True)
    held = _held(world, config, leaving)
    seen = _look(world, chosen)
    joining = tuple(sorted(node.name for node in world.nodes if node.name in chosen and not node.labelled))
    wanted = config.peer_pods
    return Decision(
        adopt=_adopt(config),
        statuses=_status(world, config, seen, _condition(world, config, seen, held, bool(joining))),
        label=joining,
        unlabel=tuple(sorted(node.name for node in leaving if node.name not in held)),
        ensure_daemon_sets=wanted,
        # At the end, so that no pod is scheduled before there is a node for it.
        ensure_class=wanted and not joining and not _pending(world, seen),
        remove_class=not wanted and not held and _our_class(world),
        remove_daemon_sets=not wanted and bool(world.daemon_sets) and _nothing_left(world),
    )


def _condition(
    world: World, config: KataConfig, seen: Sequence[Seen], held: Mapping[str, Sequence[PeerPod]], joining: bool
) -> Condition:
    before = config.condition
    no_class = RUNTIME_CLASS not in {one.name for one in world.classes}
    initial = no_class or before is None or before.reason == told.INSTALLING.reason
    nodes = told.of_nodes(seen, initial, world.rolling, held)
    if world.trouble:
        return told.failed(world.trouble)
    if nodes.reason == "Failed":
        return nodes
    image = told.of_image(world.image)
    if image is not None:
        return image
    if nodes == told.IDLE and (joining or (no_class and config.peer_pods)):
        return told.INSTALLING if initial else told.UPDATING
    return nodes


def _pending(world: World, seen: Iterable[Seen]) -> bool:
    """Whether an install is under way. A node that does not answer is waited for by nobody."""
    away = {node.name for node in world.nodes if not node.ready}
    return any(one.where in _PENDING and one.name not in away for one in seen)


# A KataConfig that goes


def _removed(world: World, config: KataConfig) -> Decision:
    """First what is under way comes to its end; then nothing is taken away while pods need it."""
    if not config.ours:
        return Decision()  # nothing of it was ever begun, or somebody else holds it
    if world.peer_pods is None:
        return Decision(ask_peer_pods=True)
    if not _begun(config) and (waiting := _waiting(world, config)) is not None:
        return waiting
    seen = _look(world, set())
    pods = _in_use(world, config)
    if pods and (world.daemon_sets or any(node.labelled for node in world.nodes)):
        return Decision(statuses=_status(world, config, seen, told.blocked(pods)))
    broken = told.of_nodes(seen, False, False, {})
    condition = told.failed(world.trouble) if world.trouble else broken if broken.reason == "Failed" else None
    statuses = _status(world, config, seen, condition or told.UNINSTALLING)
    if _our_class(world):
        # Alone: a pod that was admitted in the meantime is seen by the next round, before any node is touched.
        return Decision(statuses=statuses, remove_class=True)
    labelled = tuple(sorted(node.name for node in world.nodes if node.labelled))
    if labelled or not _nothing_left(world):
        return Decision(statuses=statuses, unlabel=labelled)
    if world.daemon_sets:
        return Decision(statuses=statuses, remove_daemon_sets=True)
    if world.image.ours:
        return Decision(statuses=statuses, delete_image=True)
    if world.image.build is Build.UNKNOWN:
        return Decision(statuses=_status(world, config, seen, told.of_image(world.image) or told.UNINSTALLING))
    return Decision(release=(config.name,))


def _begun(config: KataConfig) -> bool:
    return config.condition is not None and config.condition.reason == told.UNINSTALLING.reason


def _waiting(world: World, config: KataConfig) -> Decision | None:
    """The install or update goes on, if one is under way; no further node begins."""
    try:
        chosen = _chosen(world, config)
    except SelectorError:
        return None
    labelled = {node.name for node in world.nodes if node.labelled}
    leaving = [node for node in world.nodes if node.name in labelled - chosen]
    held = _held(world, config, leaving)
    seen = _look(world, chosen)
    pending = _pending(world, seen)
    building = world.image.build is Build.RUNNING and bool(labelled)
    if world.trouble or not (pending or building):
        return None
    return Decision(
        statuses=_status(world, config, seen, _condition(world, config, seen, held, False)),
        unlabel=tuple(sorted(node.name for node in leaving if node.name not in held)),
        ensure_daemon_sets=True,
    )


# What is seen


def _chosen(world: World, config: KataConfig) -> set[str]:
    """Nodes that shall run peer pods. Raises SelectorError."""
    if config.selector is not None:
        matches = matcher(config.selector)  # also where nothing is to be chosen: a wrong one is told at once
        chosen = {node.name for node in world.nodes if matches(node.labels)}
    else:
        chosen = {node.name for node in world.nodes if node.worker}
    return chosen if config.peer_pods else set()


def _look(world: World, chosen: set[str]) -> list[Seen]:
    """Every node's list. One that will only now be labelled has nothing to tell yet."""
    pods = world.pods_of()
    return [
        look(
            node,
            pods.get(node.name, ()),
            world.components,
            kata=node.labelled and node.name in chosen,
            now=world.now,
            patient=world.image.build is Build.RUNNING,
        )
        for node in world.nodes
    ]


def _status(world: World, config: KataConfig, seen: list[Seen], condition: Condition) -> dict[str, dict[str, Any]]:
    kata = sum(one.where in _KATA for one in seen)
    there = {one.name for one in world.classes if one.here or one.name in config.runtime_classes}
    return {config.name: told.status(config, seen, kata, there, condition, world.now)}


def _in_use(world: World, config: KataConfig) -> list[PeerPod]:
    """Pods of the classes that lead here. Of ours also when it is gone, as it is when a deletion begins."""
    names = {one.name for one in world.classes if one.here} | {RUNTIME_CLASS, *config.runtime_classes}
    return [pod for pod in world.peer_pods or () if pod.runtime_class in names]


def _held(world: World, config: KataConfig, leaving: Iterable[Node]) -> dict[str, list[PeerPod]]:
    """Nodes that peer pods run on: without its service a pod VM would go on with nobody to end it."""
    found: dict[str, list[PeerPod]] = {node.name: [] for node in leaving}
    for pod in _in_use(world, config):
        if pod.node in found:
            found[pod.node].append(pod)
    return {name: pods for name, pods in found.items() if pods}


def _nothing_left(world: World) -> bool:
    """Whether no node that can be asked runs anything of ours. One that cannot holds up nobody."""
    away = {node.name for node in world.nodes if not node.ready}
    return all(pod.node in away for pod in world.pods) and not any(node.labelled for node in world.nodes)


def _our_class(world: World) -> bool:
    return any(one.name == RUNTIME_CLASS and one.ours for one in world.classes)


def _adopt(config: KataConfig) -> str:
    return "" if config.ours else config.name
