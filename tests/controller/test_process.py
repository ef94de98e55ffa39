"""`caa controller` as a process, on the API server's stand-in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest

from caa.controller.kataconfig import FINALIZER
from caa.controller.objects import SHIPPED, daemon_sets, runtime_class
from tests.controller.cluster import (
    DELETING,
    IMAGE,
    NAMESPACE,
    SWEEPING,
    Cluster,
    called,
    manifests,
    not_allowed,
    rights,
    rules,
)
from tests.controller.test_kataconfig import VERSIONS as STATUSES
from tests.kube.apiserver import KubeApiServer, eventually
from tests.kube.conftest import api_server
from tests.webhook.test_manifests import VERSIONS

__all__ = ["api_server"]
POOL: dict[str, Any] = {"kataConfigPoolSelector": {"matchLabels": {"pool": "kata"}}}


@pytest.fixture
def cluster(api_server: KubeApiServer) -> Iterator[Cluster]:
    made = Cluster(api_server)
    yield made
    made.close()


def gone(cluster: Cluster) -> bool:
    return not cluster.config()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    kinds = set()
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)
        kinds.add(manifest["kind"])
    assert kinds >= {"Deployment", "CustomResourceDefinition", "Role", "ClusterRole", "PodDisruptionBudget"}


def strategy(cluster: Cluster) -> Any:
    """Of the proxy's DaemonSet."""
    (found,) = [
        one for one in cluster.kube.do("listed", resource="daemonsets") if one["metadata"]["name"] == "caa-proxy"
    ]
    return found["spec"]["updateStrategy"]["type"]


def test_a_kata_config_s_life(cluster: Cluster) -> None:
    kube = cluster.kube
    kube.do("allow_only", rules=rules())
    cluster.add()
    own = {"containers": [{"name": "sidecar", "image": "other"}, {"name": "controller", "image": IMAGE}]}
    kube.do("add", resource="pods", namespace=NAMESPACE, body={"metadata": {"name": "caa-controller-1"}, "spec": own})
    controller = cluster.controller(HOSTNAME="caa-controller-1", CAA_IMAGE="")
    cluster.until(lambda: cluster.progress() == ("False", ""), controller)
    status = cluster.config()["status"]
    assert status["kataNodes"] == {"nodeCount": 2, "readyNodeCount": 2, "installed": ["w0", "w1"]}
    assert status["runtimeClasses"] == ["kata-remote"]
    assert cluster.config()["metadata"]["finalizers"] == [FINALIZER]
    sets = {
        one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in kube.do("listed", resource="daemonsets")
    }
    assert sorted(sets) == ["caa-proxy", "caa-serve"]
    assert all(one["containers"][0]["image"] == IMAGE for one in sets.values())
    (made,) = kube.do("listed", resource="runtimeclasses")
    assert (made["handler"], made["overhead"]["podFixed"]["memory"]) == ("kata-remote", "120Mi")
    # What somebody else changed is made right, and what somebody else added is left there.
    patch: dict[str, Any] = {"overhead": {"podFixed": {"memory": "2Gi"}}, "metadata": {"labels": {"theirs": "yes"}}}
    kube.do("change", resource="runtimeclasses", name="kata-remote", patch=patch)
    patch = {"spec": {"updateStrategy": {"type": "RollingUpdate"}, "minReadySeconds": 3}}
    kube.do("change", resource="daemonsets", namespace=NAMESPACE, name="caa-proxy", patch=patch)
    eventually(lambda: strategy(cluster), lambda seen: seen == "OnDelete")
    (made,) = eventually(lambda: kube.do("listed", resource="runtimeclasses"), lambda seen: "120Mi" in str(seen))
    assert made["metadata"]["labels"]["theirs"] == "yes"
    # A node comes, and one goes, by their labels.
    cluster.add_node("w2")
    cluster.until(lambda: cluster.config()["status"]["kataNodes"]["readyNodeCount"] == 3, controller)
    kube.do("remove", resource="nodes", name="w2")
    kube.do("change", resource="kataconfigs", name="example", patch={"spec": {**POOL}})
    cluster.relabel("w1", pool="kata")
    cluster.until(lambda: cluster.labelled() == ["w1"] and cluster.progress() == ("False", ""), controller)
    # A pod keeps all that it needs.
    cluster.run_pod("web", "w1")
    cluster.delete()
    eventually(cluster.progress, lambda seen: seen == ("True", "BlockedByExistingKataPods"))
    assert cluster.labelled() == ["w1"]
    kube.do("remove", resource="pods", namespace="default", name="web")
    kube.do("change", resource="nodes", name="w1", patch={"metadata": {"labels": {"wake": "up"}}})
    cluster.until(lambda: gone(cluster), controller)
    for resource in ("daemonsets", "runtimeclasses"):
        assert kube.do("listed", resource=resource) == []
    assert cluster.labelled() == []
    assert cluster.reasons()[:2] == ["Installing", "Completed"]
    assert cluster.reasons()[-2:] == ["BlockedByExistingKataPods", "Uninstalling"]
    assert controller.stop() == 0
    # Each right is used; the others in test_controller_sweep and test_controller_image.
    assert called(kube) | SWEEPING | DELETING == rights()
    assert not_allowed(kube) == []


@pytest.mark.parametrize("status", STATUSES.values(), ids=STATUSES)
def test_an_object_of_an_earlier_version_is_valid_and_carried_over(cluster: Cluster, status: dict[str, Any]) -> None:
    kube = cluster.kube
    body = {"metadata": {"name": "example"}, "spec": {"enablePeerPods": True, "logLevel": "info"}, "status": status}
    kube.do("add", resource="kataconfigs", body=body)
    kube.do("add", resource="runtimeclasses", body={"metadata": {"name": "kata"}, "handler": "kata"})
    cluster.controller()
    cluster.install()
    now = cluster.config()["status"]
    assert now["runtimeClasses"] == ["kata", "kata-remote"]
    assert now.get("runtimeClass") == status.get("runtimeClass")


def test_one_of_two_leads_and_the_other_takes_over(cluster: Cluster) -> None:
    cluster.add()
    first = cluster.controller()
    cluster.until(lambda: cluster.progress() == ("False", ""), first)
    second = cluster.controller()
    eventually(second.log, lambda text: "leads, and" in text)
    eventually(lambda: cluster.kube.do("watching", resource="nodes"), lambda seen: seen == 1)
    first.stop()
    cluster.add_node("w2")
    cluster.until(lambda: cluster.config()["status"]["kataNodes"]["nodeCount"] == 3, second)


@pytest.mark.skipif(not os.environ.get("CAA_SOAK"), reason="waits for a Lease to run out; CAA_SOAK=1 runs it")
def test_one_that_is_killed_is_followed_when_its_lease_has_run_out(cluster: Cluster) -> None:
    cluster.add()
    first = cluster.controller()
    cluster.until(lambda: cluster.progress() == ("False", ""), first)
    second = cluster.controller()
    eventually(second.log, lambda text: "leads, and" in text)
    first.kill()
    cluster.add_node("w2")
    cluster.until(lambda: cluster.config()["status"]["kataNodes"]["nodeCount"] == 3, second)


def test_broken_watches_lost_history_conflicts_and_an_outage_lose_nothing(cluster: Cluster) -> None:
    kube = cluster.kube
    cluster.add(**POOL)
    controller = cluster.controller()
    cluster.until(lambda: cluster.progress() == ("False", ""), controller)

    def joins(node: str, count: int) -> None:
        cluster.relabel(node, pool="kata")
        cluster.until(lambda: cluster.config()["status"]["kataNodes"].get("readyNodeCount") == count, controller)

    kube.do("break_watches")
    joins("w0", 1)
    kube.do("expire")
    kube.do("break_watches", how="close")
    joins("w1", 2)
    for resource, code in (("kataconfigs/status", 409), ("nodes", 409), ("nodes", 429), ("kataconfigs/status", 503)):
        kube.do("refuse", code=code, resource=resource, times=2)
    cluster.add_node("w2")
    joins("w2", 3)
    kube.do("set_down", down=True)
    cluster.add_node("w3", pool="kata")
    kube.do("set_down", down=False)
    joins("w3", 4)
    assert cluster.progress() == ("False", "")


def test_watches_that_end_for_good_begin_again(cluster: Cluster) -> None:
    cluster.add()
    controller = cluster.controller()
    cluster.until(lambda: cluster.progress() == ("False", ""), controller)
    cluster.kube.do("refuse", code=401, resource="nodes", verb="watch")
    cluster.kube.do("break_watches", resource="nodes")
    eventually(controller.log, lambda text: "the watches begin again" in text)
    eventually(lambda: cluster.kube.do("watching", resource="nodes"), lambda seen: seen == 1)
    cluster.add_node("w2")
    cluster.until(lambda: cluster.config()["status"]["kataNodes"]["readyNodeCount"] == 3, controller)


def test_an_outage_that_costs_the_lead_loses_nothing_else(cluster: Cluster) -> None:
    cluster.add()
    controller = cluster.controller()
    cluster.until(lambda: cluster.progress() == ("False", ""), controller)
    cluster.kube.do("set_down", down=True)
    eventually(controller.log, lambda text: "leads no more" in text)
    cluster.add_node("w2")
    cluster.kube.do("set_down", down=False)
    cluster.until(lambda: cluster.config()["status"]["kataNodes"]["readyNodeCount"] == 3, controller)
    eventually(lambda: cluster.kube.do("watching", resource="nodes"), lambda seen: seen == 1)
    assert controller.stop() == 0


def test_a_second_kata_config_is_told_that_it_is_ignored(cluster: Cluster) -> None:
    cluster.add()
    cluster.controller()
    cluster.install()
    cluster.add("second", **POOL)
    eventually(lambda: cluster.progress("second"), lambda seen: seen == ("False", "DuplicateKataConfig"))
    eventually(lambda: cluster.reasons("second"), lambda seen: seen == ["DuplicateKataConfig"])
    assert cluster.labelled() == ["w0", "w1"]


def test_daemon_sets_and_a_class_that_somebody_else_made_are_used_and_left_there(cluster: Cluster) -> None:
    kube = cluster.kube
    made = [*daemon_sets(SHIPPED, NAMESPACE, "theirs:1").values(), runtime_class()]
    for body in made:
        del body["metadata"]["labels"]
        resource, namespace = ("daemonsets", NAMESPACE) if body["kind"] == "DaemonSet" else ("runtimeclasses", "")
        kube.do("add", resource=resource, namespace=namespace, body=body)
    before = kube.do("listed", resource="daemonsets"), kube.do("listed", resource="runtimeclasses")
    cluster.add()
    controller = cluster.controller()
    cluster.until(lambda: cluster.progress() == ("False", ""), controller)
    assert cluster.config()["status"]["kataNodes"]["readyNodeCount"] == 2
    cluster.delete()
    cluster.until(lambda: gone(cluster), controller)
    assert cluster.labelled() == []
    assert (kube.do("listed", resource="daemonsets"), kube.do("listed", resource="runtimeclasses")) == before


def test_what_the_api_server_refuses_is_told_and_the_rest_goes_on(cluster: Cluster) -> None:
    kube = cluster.kube
    # Until the test has seen it: what is refused once is told for no longer than until the next round.
    kube.do("refuse", code=403, resource="daemonsets", verb="create", times=10**6)
    cluster.add()
    cluster.controller()
    eventually(cluster.progress, lambda seen: seen == ("True", "Failed"))
    message = cluster.config()["status"]["conditions"][0]["message"]
    assert message == "DaemonSet caa-serve: the test refuses create daemonsets"
    assert cluster.labelled() == ["w0", "w1"]
    kube.do("refuse_no_more")
    cluster.relabel("w0", wake="1")
    cluster.install()


def test_outside_of_a_pod_the_image_has_to_be_named(cluster: Cluster) -> None:
    controller = cluster.controller(HOSTNAME="elsewhere", CAA_IMAGE="")
    eventually(controller.process.poll, lambda seen: seen == 1)
    text = "caa: CAA_IMAGE: '' is not allowed where peerpods-nodes/elsewhere is no Pod"
    assert text in controller.log()


def test_without_the_definition_it_waits_for_it(cluster: Cluster) -> None:
    (definition,) = [one for one in manifests() if one["kind"] == "CustomResourceDefinition"]
    cluster.kube.do("without", kind="kataconfigs")
    controller = cluster.controller()
    eventually(controller.log, lambda text: "there is no definition of KataConfig" in text)
    cluster.kube.do("define", definition=definition)
    cluster.add()
    cluster.until(lambda: cluster.progress() == ("False", ""), controller)
