"""The id of an image that was built here comes into the ConfigMap, and no other is lost for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caa.images.imaging import WriteBackError
from caa.images.writeback import ConfigMapWriteBack
from caa.kubernetes.configpatch import WatchedConfigMap
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.imagelab import make_disk
from tests.clouds.test_service_image import unready_service
from tests.kube.apiserver import KubeApiServer, eventually
from tests.kube.test_manifests import CONFIG as ROLE
from tests.kube.test_manifests import NODE, rights, rules
from tests.kube.test_watched_configuration import CONFIG, SPACE, World

KEY, LATEST = "PODVM_AMI_ID", "LATEST_AMI_ID"


def config_map(kube: KubeApiServer) -> dict[str, Any]:
    (found,) = kube.do("listed", resource="configmaps", namespace=SPACE)
    return dict(found)


def images(kube: KubeApiServer) -> tuple[str, str]:
    data = config_map(kube)["data"]
    return data.get(KEY, ""), data.get(LATEST, "")


@pytest.fixture
def write_back(kube: KubeApiServer, monkeypatch: pytest.MonkeyPatch) -> ConfigMapWriteBack:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig()))
    kube.do("namespace", name=SPACE)
    body = {"metadata": {"name": CONFIG, "annotations": {"theirs": "kept"}}, "data": {KEY: "", "TAGS": "a=b"}}
    kube.do("add", resource="configmaps", namespace=SPACE, body=body)
    return ConfigMapWriteBack(WatchedConfigMap(SPACE), KEY, LATEST)


def somebody(data: dict[str, str]) -> dict[str, Any]:
    return {"resource": "configmaps", "namespace": SPACE, "name": CONFIG, "patch": {"data": data}}


def test_an_id_is_written_beside_what_others_wrote_meanwhile(
    kube: KubeApiServer, write_back: ConfigMapWriteBack
) -> None:
    kube.do("meanwhile", verb="patch", resource="configmaps", change=somebody({"TAGS": "c=d"}))
    write_back.written("ami-1")
    found = config_map(kube)
    assert found["data"] == {KEY: "ami-1", LATEST: "ami-1", "TAGS": "c=d"}
    assert found["metadata"]["annotations"] == {"theirs": "kept", LATEST: "ami-1"}
    assert [call["verb"] for call in kube.do("called")] == ["get", "patch", "get", "patch"]
    write_back.written("ami-2")
    assert images(kube) == ("ami-2", "ami-2")
    write_back.written("")
    assert images(kube) == ("", "")
    assert config_map(kube)["metadata"]["annotations"] == {"theirs": "kept"}


def test_an_id_that_a_user_wrote_meanwhile_stays(kube: KubeApiServer, write_back: ConfigMapWriteBack) -> None:
    write_back.written("ami-1")
    kube.do("meanwhile", verb="patch", resource="configmaps", change=somebody({KEY: "ami-of-a-user"}))
    write_back.written("ami-2")
    assert images(kube) == ("ami-of-a-user", "ami-1")
    write_back.written("")
    assert images(kube) == ("ami-of-a-user", "ami-1")


def test_what_is_in_the_way_is_said(kube: KubeApiServer, write_back: ConfigMapWriteBack) -> None:
    kube.do("refuse", code=403, verb="patch")
    with pytest.raises(WriteBackError, match=f"ConfigMap {SPACE}/{CONFIG}: the test refuses patch"):
        write_back.written("ami-1")
    kube.do("set_down", down=True)
    with pytest.raises(WriteBackError, match="the API server cannot be reached"):
        write_back.written("ami-1")
    kube.do("set_down", down=False)
    kube.do("remove", resource="configmaps", namespace=SPACE, name=CONFIG)
    with pytest.raises(WriteBackError, match="there is no ConfigMap"):
        write_back.written("ami-1")


def test_a_built_image_is_told_quarter_by_quarter_and_named_in_the_config_map_though_the_first_try_failed(
    kube: KubeApiServer, account: Account, proxy: FaultProxy, tmp_path: Path
) -> None:
    world = World(kube, account, proxy)
    world.change(PODVM_AMI_ID="")
    kube.do("refuse", code=503, verb="patch", resource="configmaps")
    kube.do("forget_calls")
    proxy.add(Fault.DELAY, Phase.BEFORE, method="PUT", seconds=1.0, times=None)  # so that there is something to tell
    # With these rights and no others, as the objects they name.
    kube.do("allow_only", rules=rules(NODE, ROLE))
    with unready_service(account, proxy, make_disk(tmp_path / "disk.raw"), **world.keys()) as service:
        service.wait_ready()
        image, latest = eventually(lambda: images(kube), lambda seen: bool(seen[0]))
        assert image == latest
        ready = ("ImageReady", "Normal", f"pod VMs boot {image} from now on")
        told = eventually(world.events, lambda seen: ready in seen)
        building = [message for reason, kind, message in told if (reason, kind) == ("ImageBuilding", "Normal")]
        assert any("upload" in message for message in building)
        assert all("the pod VM image is being built: " in message for message in building)
        with service.rest() as client:
            status = client.get("/v1/config/status").json()
            assert status["refused"] is None
            assert client.get("/v1/image/status").json()["ready"]["image"] == image
        calls = eventually(
            lambda: {(call["verb"], call["resource"]) for call in kube.do("called")}, lambda seen: rights(ROLE) <= seen
        )
    assert calls <= rights(ROLE, NODE)
