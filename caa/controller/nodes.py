"""Which list of `status.kataNodes` a node is in. Pure.

The lists are those of OpenShift sandboxed containers 1.5, which reads annotations of the machine config operator. Here
the pods of the DaemonSets on the node say as much, on any Kubernetes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

LABEL = "node-role.kubernetes.io/kata-oc"
WORKER_LABEL = "node-role.kubernetes.io/worker"
_CONTROL_PLANE = frozenset({"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"})
# What Deployments give a pod to become ready (progressDeadlineSeconds); it covers the pull of a large image.
DEADLINE = timedelta(minutes=10)


class Progress(enum.StrEnum):
    """How far what runs on a node is from what shall."""

    DONE = "Done"
    """Nothing is under way."""
    WORKING = "Working"
    """It is changing now."""
    DEGRADED = "Degraded"
    """It failed, or takes longer than DEADLINE."""


class NodeList(enum.StrEnum):
    """The lists, by their names in the status."""

    INSTALLED = "installed"
    INSTALLING = "installing"
    WAITING_TO_INSTALL = "waitingToInstall"
    FAILED_TO_INSTALL = "failedToInstall"
    UNINSTALLING = "uninstalling"
    WAITING_TO_UNINSTALL = "waitingToUninstall"
    FAILED_TO_UNINSTALL = "failedToUninstall"


FAILED = frozenset({NodeList.FAILED_TO_INSTALL, NodeList.FAILED_TO_UNINSTALL})


def classify(progress: Progress, *, current: bool, kata: bool) -> NodeList | None:
    """The list of a node; None for one that has nothing and shall have nothing.

    `current`: what runs there is what shall. `kata`: the node shall run peer pods.
    """
    match progress:
        case Progress.WORKING:
            return NodeList.INSTALLING if kata else NodeList.UNINSTALLING
        case Progress.DEGRADED:
            return NodeList.FAILED_TO_INSTALL if kata else NodeList.FAILED_TO_UNINSTALL
        case Progress.DONE if current:
            return NodeList.INSTALLED if kata else None
    return NodeList.WAITING_TO_INSTALL if kata else NodeList.WAITING_TO_UNINSTALL


@dataclass(frozen=True, slots=True)
class ServicePod:
    """A pod of one of our DaemonSets. `trouble` is why it cannot become ready, "" while it may.

    `since` is when it was made or was last ready; of one that is ending, when it was told to.
    """

    node: str
    component: str  # the DaemonSet
    ready: bool
    ending: bool
    since: datetime
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster. `ready`: the API server hears from it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True

    @property
    def labelled(self) -> bool:
        """Whether the DaemonSets choose it."""
        return LABEL in self.labels

    @property
    def worker(self) -> bool:
        """Whether it is chosen where no selector is given: by its role, or where nobody gives roles."""
        return WORKER_LABEL in self.labels or not self.labels.keys() & _CONTROL_PLANE


@dataclass(frozen=True, slots=True)
class Seen:
    """What is to be told of one node. `why` is the trouble of one that is degraded."""

    name: str
    where: NodeList | None
    why: str = ""


def look(
    node: Node,
    pods: Iterable[ServicePod],
    components: Iterable[str],
    *,
    kata: bool,
    now: datetime,
    patient: bool = False,
) -> Seen:
    """The list of a node by its pods. `components` are the DaemonSets that shall have a ready one there.

    `patient`: something else takes its time, without which none becomes ready, so none is late.
    """
    pods = list(pods)
    progress, why = _installing(pods, set(components), now, patient) if kata else _leaving(pods, now)
    there = bool(pods) if kata else bool(pods) or node.labelled
    return Seen(node.name, classify(progress, current=there == kata, kata=kata), why)


def _installing(pods: list[ServicePod], wanted: set[str], now: datetime, patient: bool) -> tuple[Progress, str]:
    if not pods or wanted <= {pod.component for pod in pods if pod.ready and not pod.ending}:
        return Progress.DONE, ""
    for pod in pods:
        if pod.trouble:
            return Progress.DEGRADED, f"{pod.component}: {pod.trouble}"
    for pod in pods:
        if not patient and not pod.ready and not pod.ending and now - pod.since > DEADLINE:
            return Progress.DEGRADED, f"{pod.component}: not ready for {_minutes(now - pod.since)}"
    return Progress.WORKING, ""


def _leaving(pods: list[ServicePod], now: datetime) -> tuple[Progress, str]:
    ending = [pod for pod in pods if pod.ending]
    for pod in ending:
        if now - pod.since > DEADLINE:
            return Progress.DEGRADED, f"{pod.component}: has been ending for {_minutes(now - pod.since)}"
    return (Progress.WORKING if ending else Progress.DONE), ""


def _minutes(time: timedelta) -> str:
    return f"more than {int(time.total_seconds()) // 60} minutes"
