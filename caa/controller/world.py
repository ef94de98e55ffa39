"""What the controller sees before it decides. Built by `caa.controller.reading`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from caa.controller.kataconfig import KataConfig
from caa.controller.nodes import Node, ServicePod

RUNTIME_CLASS = "kata-remote"


class Build(enum.StrEnum):
    """What there is to know of the pod VM image."""

    NONE = "none"
    """Nobody builds one: the configuration names it, or the nodes keep ledgers of their own."""
    READY = "ready"
    RUNNING = "running"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """The ledger does not answer."""
    INCOMPLETE = "incomplete"
    """The configuration cannot work, so nobody builds one."""


@dataclass(frozen=True, slots=True)
class Image:
    """The pod VM image of this cluster; `told` is how far it is, or what is wrong. `ours`: there is one to delete."""

    build: Build = Build.NONE
    told: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True)
class PeerPod:
    """A Pod that has not ended and names a runtime class. `node` is "" until it is scheduled."""

    namespace: str
    name: str
    node: str
    runtime_class: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class RuntimeClass:
    """A RuntimeClass. `ours`: this controller made it. `here`: it leads to our nodes, by its handler or its label."""

    name: str
    ours: bool = False
    here: bool = True


@dataclass(frozen=True, slots=True)
class World:
    """Everything that is decided by.

    `components` are the DaemonSets that every node shall run, `daemon_sets` those that the controller made, `rolling`
    whether the pods of one are being replaced one by one. `peer_pods` is None while nobody looked: it takes a list of
    all pods of the cluster. `trouble` is what went wrong with the last round's writes, "" when nothing did.
    """

    now: datetime
    configs: tuple[KataConfig, ...] = ()
    nodes: tuple[Node, ...] = ()
    pods: tuple[ServicePod, ...] = ()
    components: tuple[str, ...] = ()
    daemon_sets: frozenset[str] = frozenset()
    rolling: bool = False
    classes: tuple[RuntimeClass, ...] = ()
    peer_pods: tuple[PeerPod, ...] | None = None
    image: Image = field(default_factory=Image)
    trouble: str = ""

    def pods_of(self) -> Mapping[str, list[ServicePod]]:
        """By node."""
        found: dict[str, list[ServicePod]] = {}
        for pod in self.pods:
            found.setdefault(pod.node, []).append(pod)
        return found
