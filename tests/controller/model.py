"""A cluster in memory: it carries out decisions; the part of kubelets and DaemonSets is done by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from caa.controller.decide import Decision, decide
from caa.controller.kataconfig import FINALIZER, KataConfig, read
from caa.controller.nodes import LABEL, Node, ServicePod
from caa.controller.world import RUNTIME_CLASS, Image, PeerPod, RuntimeClass, World

SERVE, PROXY = "caa-serve", "caa-proxy"
COMPONENTS = (SERVE, PROXY)
START = datetime(2026, 1, 1, tzinfo=UTC)


def body(name: str = "example", created: int = 0, **spec: Any) -> dict[str, Any]:
    """A KataConfig as a user makes it."""
    return {
        "apiVersion": "kataconfiguration.openshift.io/v1",
        "kind": "KataConfig",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": f"2026-01-01T00:00:{created:02}Z",
        },
        "spec": {"enablePeerPods": True, **spec},
    }


class Model:
    """Workers w0, w1 ... and what runs on them."""

    def __init__(self, workers: int = 2, *configs: dict[str, Any]) -> None:
        self.now = START
        self.configs = {one["metadata"]["name"]: one for one in configs or (body(),)}
        self.nodes: dict[str, Node] = {}
        for number in range(workers):
            self.add_node(f"w{number}")
        self.pods: dict[tuple[str, str], ServicePod] = {}
        self.daemon_sets: set[str] = set()
        self.classes: dict[str, RuntimeClass] = {}
        self.peer_pods: list[PeerPod] = []
        self.image = Image()
        self.image_deleted = 0
        self.trouble = ""
        self.rolling = False
        self.decision = Decision()

    # Kubernetes' part

    def add_node(self, name: str, ready: bool = True, **labels: str) -> None:
        self.nodes[name] = Node(name, {"node-role.kubernetes.io/worker": "", **labels}, ready)

    def relabel(self, name: str, **labels: str | None) -> None:
        merged = {**self.nodes[name].labels, **labels}
        self.nodes[name] = replace(
            self.nodes[name], labels={key: value for key, value in merged.items() if value is not None}
        )

    def pods_on(self, name: str, ready: bool = False, ending: bool = False, trouble: str = "") -> None:
        """Both pods of a node, new in this state."""
        for component in COMPONENTS:
            self.pods[name, component] = ServicePod(name, component, ready, ending, self.now, trouble)

    def no_pods_on(self, name: str) -> None:
        for component in COMPONENTS:
            self.pods.pop((name, component), None)

    def settle(self) -> None:
        """The DaemonSets' controller and the kubelets have done everything."""
        for name, node in self.nodes.items():
            if node.labelled and self.daemon_sets:
                self.pods_on(name, ready=True)
            else:
                self.no_pods_on(name)

    def run_pod(self, name: str, node: str, runtime_class: str = RUNTIME_CLASS) -> None:
        self.peer_pods.append(PeerPod("default", name, node, runtime_class))

    def delete(self, name: str = "example") -> None:
        self.configs[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
        if not self.configs[name]["metadata"].get("finalizers"):
            del self.configs[name]

    # The controller's

    def world(self, with_pods: bool = False) -> World:
        return World(
            now=self.now,
            configs=tuple(read(one) for one in self.configs.values()),
            nodes=tuple(self.nodes.values()),
            pods=tuple(self.pods.values()),
            components=COMPONENTS,
            daemon_sets=frozenset(self.daemon_sets),
            rolling=self.rolling,
            classes=tuple(self.classes.values()),
            peer_pods=tuple(self.peer_pods) if with_pods else None,
            image=self.image,
            trouble=self.trouble,
        )

    def round(self) -> Decision:
        """One look, one decision, its actions."""
        self.now += timedelta(seconds=1)
        decision = decide(self.world())
        if decision.ask_peer_pods:
            decision = decide(self.world(with_pods=True))
        self._act(decision)
        self.decision = decision
        return decision

    def _act(self, do: Decision) -> None:
        if do.adopt:
            self.configs[do.adopt]["metadata"].setdefault("finalizers", []).append(FINALIZER)
        for name, status in do.statuses.items():
            self.configs[name]["status"] = {**self.configs[name].get("status", {}), **status}
        for name, value in [*((name, "") for name in do.label), *((name, None) for name in do.unlabel)]:
            self.relabel(name, **{LABEL: value})
        self._act_on_objects(do)
        for name in do.release:
            finalizers = self.configs[name]["metadata"]["finalizers"]
            finalizers.remove(FINALIZER)
            if not finalizers:
                del self.configs[name]

    def _act_on_objects(self, do: Decision) -> None:
        if do.ensure_daemon_sets:
            self.daemon_sets |= set(COMPONENTS)
        if do.ensure_class:
            self.classes.setdefault(RUNTIME_CLASS, RuntimeClass(RUNTIME_CLASS, ours=True))
        if do.remove_class:
            del self.classes[RUNTIME_CLASS]
        if do.remove_daemon_sets:
            self.daemon_sets.clear()
        if do.delete_image:
            self.image, self.image_deleted = Image(), self.image_deleted + 1

    def install(self, name: str = "example") -> Model:
        """Until nothing more happens."""
        for _ in range(4):
            self.round()
            self.settle()
        assert self.progress(name) == ("False", ""), self.configs
        return self

    # What a user sees

    def config(self, name: str = "example") -> KataConfig:
        return read(self.configs[name])

    def kata_nodes(self) -> dict[str, Any]:
        """`status.kataNodes`."""
        found: dict[str, Any] = self.config().status["kataNodes"]
        return found

    def progress(self, name: str = "example") -> tuple[str, str]:
        """Status and reason of the condition."""
        condition = self.config(name).condition
        assert condition is not None
        return condition.key

    def message(self, name: str = "example") -> str:
        condition = self.config(name).condition
        assert condition is not None
        return condition.message

    def labelled(self) -> list[str]:
        return sorted(name for name, node in self.nodes.items() if node.labelled)
