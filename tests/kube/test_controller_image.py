"""The pod VM image in the life of a KataConfig: a shared ledger, emulated EC2, and the API server's stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from caa.images.image import ImageState, Lease, PodVmImage
from caa.ledger import open_ledger
from tests.clouds.aws.account import Account
from tests.clouds.conftest import postgresql, postgresql_ledger
from tests.clouds.imagelab import image_lab, make_disk
from tests.clouds.podworld import service_environ
from tests.controller.cluster import DELETING, NAMESPACE, Cluster, called, not_allowed, rules
from tests.kube.apiserver import KubeApiServer, eventually

__all__ = ["postgresql", "postgresql_ledger"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def cluster(api_server: KubeApiServer) -> Iterator[Cluster]:
    made = Cluster(api_server)
    yield made
    made.close()


def pods(kube: KubeApiServer) -> list[dict[str, Any]]:
    """Calls about pods."""
    return [one for one in kube.do("called") if one["resource"] == "pods"]


def test_a_deletion_waits_for_a_build_and_takes_the_image_along_with_its_id(
    account: Account, cluster: Cluster, postgresql_ledger: str, tmp_path: Path
) -> None:
    kube = cluster.kube
    account.emulator.run_clock()
    keys = service_environ(account, CAA_CLUSTER_ID="prod", CAA_LEDGER_URL=postgresql_ledger)
    del keys["PODVM_AMI_ID"]
    environ = account.emulator.environ() | keys
    before = account.emulator.disks()["images"]
    with image_lab(tmp_path, environ, make_disk(tmp_path / "disk")) as lab:
        image_id = lab.json("ensure")["image"]
    data = {"PODVM_AMI_ID": image_id, "LATEST_AMI_ID": image_id, "AWS_REGION": "eu-west-1"}
    kube.do(
        "add", resource="configmaps", namespace=NAMESPACE, body={"metadata": {"name": "peer-pods-cm"}, "data": data}
    )
    kube.do("allow_only", rules=rules())
    cluster.add()
    controller = cluster.controller(**environ)
    cluster.until(lambda: cluster.progress() == ("False", ""), controller)
    ledger = open_ledger(postgresql_ledger)
    try:
        store = ledger.images
        (ready,) = store.all("prod")
        name = f"image of prod in {ready.account}"
        lease = store.take_lease(name, "builder", 600, NOW)
        assert isinstance(lease, Lease)
        building = PodVmImage("next", "prod", ready.account, "recipe", ImageState.BUILDING, NOW, NOW)
        building = store.add(replace(building, phase="upload", done=40, total=100), lease)
        cluster.relabel("w0", wake="1")
        eventually(cluster.progress, lambda seen: seen == ("True", "PodVMImageJobRunning"))
        message = cluster.config()["status"]["conditions"][0]["message"]
        assert message == "Creating Pod VM Image: it is being built: upload, 40 %"
        used = called(kube)
        kube.do("forget_calls")
        cluster.delete()
        # A round that sees a deletion looks for peer pods everywhere.
        eventually(lambda: ("list", "") in {(one["verb"], one["namespace"]) for one in pods(kube)}, bool)
        cluster.add_node("w2")
        kube.do("forget_calls")
        eventually(lambda: len(pods(kube)) >= 2, bool)
        assert cluster.labelled() == ["w0", "w1"]
        assert cluster.progress() == ("True", "PodVMImageJobRunning")
        building = store.save(replace(building, state=ImageState.DELETING), lease)
        store.save(replace(building, state=ImageState.DELETED), lease)
        store.give_back_lease(lease)
        cluster.relabel("w0", wake="3")
        cluster.until(lambda: not cluster.config(), controller)
        assert {one.state for one in store.all("prod")} == {ImageState.DELETED}
    finally:
        ledger.close()
    assert account.emulator.disks()["images"] == before
    (left,) = [one for one in kube.do("listed", resource="configmaps") if one["metadata"]["name"] == "peer-pods-cm"]
    assert (left["data"].get("PODVM_AMI_ID", ""), left["data"]["AWS_REGION"]) == ("", "eu-west-1")
    assert called(kube) | used >= DELETING
    assert not_allowed(kube) == []
