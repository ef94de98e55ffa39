"""A cluster with a real `caa controller` on the API server's stand-in; DaemonSets and kubelets are played here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from caa.controller.nodes import LABEL
from tests.kube.apiserver import KubeApiServer, eventually

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "docker" / "kubernetes" / "controller"
NAMESPACE = "peerpods-nodes"
IMAGE = "registry.example.com/caa:7"
STOP_SECONDS = 60.0


def manifests() -> Iterator[dict[str, Any]]:
    """All that the kustomization names; it uses `resources` and nothing else."""
    kustomization = yaml.safe_load((PLACE / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "resources"}
    for name in kustomization["resources"]:
        yield from yaml.safe_load_all((PLACE / name).read_text())


Right = tuple[str, str, str]  # verb, group, resource
# What is called only when a node is gone.
SWEEPING: set[Right] = {
    ("update", "", "configmaps"),
    *((verb, "confidentialcontainers.org", "peerpods") for verb in ("delete", "list", "patch")),
}


# What is called only when an image that was built is deleted.
DELETING: set[Right] = {("get", "", "configmaps"), ("patch", "", "configmaps")}


def rules() -> list[dict[str, Any]]:
    """Of the shipped roles, for the stand-in."""
    return [rule for one in manifests() if one["kind"] in ("Role", "ClusterRole") for rule in one["rules"]]


def rights() -> set[Right]:
    """The same, one by one."""
    return {
        (verb, group, resource)
        for rule in rules()
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def called(kube: KubeApiServer) -> set[Right]:
    """What was used of them."""
    return {(call["verb"], call["group"], call["resource"]) for call in kube.do("called")}


def not_allowed(kube: KubeApiServer) -> list[dict[str, Any]]:
    """Calls that a role does not allow where they were made: a Role is good in its namespace only."""
    return [call for call in kube.do("called") if not any(_allows(role, call) for role in manifests())]


def _allows(role: dict[str, Any], call: dict[str, Any]) -> bool:
    if (
        role["kind"] not in ("Role", "ClusterRole")
        or role["metadata"].get("namespace", call["namespace"]) != call["namespace"]
    ):
        return False
    return any(
        call["verb"] in rule["verbs"]
        and call["group"] in rule["apiGroups"]
        and call["resource"] in rule["resources"]
        and call["name"] in rule.get("resourceNames", [call["name"]])
        for rule in role["rules"]
    )


class Controller:
    """One replica, as a process."""

    def __init__(self, kube: KubeApiServer, **environ: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="controller-")
        self._log = Path(self._directory.name) / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "caa.cli.main", "controller", "--namespace", NAMESPACE],
                env={**os.environ, "CAA_IMAGE": IMAGE, "KUBECONFIG": str(kube.kubeconfig()), **environ},
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """As the kubelet does; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        finally:
            self.kill()
            self._directory.cleanup()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Cluster:
    """What a test does, and sees."""

    def __init__(self, kube: KubeApiServer, workers: int = 2) -> None:
        self.kube = kube
        kube.do("reset")
        kube.do("namespace", name=NAMESPACE)
        for manifest in manifests():
            if manifest["kind"] == "CustomResourceDefinition":
                kube.do("define", definition=manifest)
        for number in range(workers):
            self.add_node(f"w{number}")
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()

    # Kubernetes' part

    def add_node(self, name: str, **labels: str) -> None:
        labels = {"kubernetes.io/hostname": name, "node-role.kubernetes.io/worker": "", **labels}
        ready = {"type": "Ready", "status": "True"}
        body = {"metadata": {"name": name, "labels": labels}, "status": {"conditions": [ready]}}
        self.kube.do("add", resource="nodes", body=body)

    def relabel(self, name: str, **labels: str | None) -> None:
        self.kube.do("change", resource="nodes", name=name, patch={"metadata": {"labels": labels}})

    def labelled(self) -> list[str]:
        nodes = self.kube.do("listed", resource="nodes")
        return [one["metadata"]["name"] for one in nodes if LABEL in one["metadata"]["labels"]]

    def settle(self) -> None:
        """The DaemonSets' controller and the kubelets do all there is to do now."""
        sets = {one["metadata"]["name"]: one for one in self.kube.do("listed", resource="daemonsets")}
        wanted = {f"{name}-{node}": (name, node) for name in sets for node in self.labelled()}
        there = {one["metadata"]["name"] for one in self.service_pods()}
        for pod in there - wanted.keys():
            self.kube.do("remove", resource="pods", namespace=NAMESPACE, name=pod)
        for pod in wanted.keys() - there:
            name, node = wanted[pod]
            assert sets[name]["spec"]["template"]["spec"]["nodeSelector"] == {LABEL: ""}
            self.start_pod(sets[name], node)

    def start_pod(self, daemon_set: dict[str, Any], node: str) -> None:
        name = daemon_set["metadata"]["name"]
        owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": daemon_set["metadata"]["uid"]}
        body = {
            "metadata": {"name": f"{name}-{node}", "ownerReferences": [owner]},
            "spec": {"nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }
        self.kube.do("add", resource="pods", namespace=NAMESPACE, body=body)

    def service_pods(self) -> list[dict[str, Any]]:
        found = self.kube.do("listed", resource="pods", namespace=NAMESPACE)
        return [one for one in found if one["metadata"].get("ownerReferences")]

    def run_pod(self, name: str, node: str, runtime_class: str = "kata-remote") -> None:
        spec = {"nodeName": node, "runtimeClassName": runtime_class}
        body = {"metadata": {"name": name}, "spec": spec, "status": {"phase": "Running"}}
        self.kube.do("add", resource="pods", namespace="default", body=body)

    # A user's part

    def add(self, name: str = "example", **spec: Any) -> None:
        body = {"metadata": {"name": name}, "spec": {"enablePeerPods": True, **spec}}
        self.kube.do("add", resource="kataconfigs", body=body)

    def delete(self, name: str = "example") -> None:
        self.kube.do("remove", resource="kataconfigs", name=name)

    def config(self, name: str = "example") -> dict[str, Any]:
        """{} when there is none."""
        found = [one for one in self.kube.do("listed", resource="kataconfigs") if one["metadata"]["name"] == name]
        return dict(found[0]) if found else {}

    def progress(self, name: str = "example") -> tuple[str, str] | None:
        """Status and reason of the condition."""
        conditions = self.config(name).get("status", {}).get("conditions") or [None]
        return (conditions[0]["status"], conditions[0]["reason"]) if conditions[0] else None

    def reasons(self, name: str = "example") -> list[str]:
        return self.kube.reasons(name)

    # Processes

    def controller(self, **environ: str) -> Controller:
        made = Controller(self.kube, **environ)
        self._stack.callback(made.stop)
        return made

    def close(self) -> None:
        self._stack.close()

    def until(self, wanted: Callable[[], bool], *controllers: Controller) -> None:
        """While nodes do what they are told."""

        def look() -> bool:
            for one in controllers:
                assert one.process.poll() is None, one.log()
            self.settle()
            return wanted()

        try:
            eventually(look, bool)
        except AssertionError as error:
            logs = "\n".join(one.log() for one in controllers)
            raise AssertionError(f"{error}\n{self.config().get('status')}\n{logs}") from error

    def install(self) -> None:
        """Until all is there. An object that says so from before says nothing of the controller."""
        self.until(lambda: self.progress() == ("False", "") and bool(self.kube.do("listed", resource="daemonsets")))
