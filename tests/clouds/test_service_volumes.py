"""CSI volumes that are disks of the cloud, as their driver leaves them on the node for Kata."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import uuid
from collections.abc import Iterator

import pytest

from caa.directvolumes import DIRECTORY
from caa.sizing import POD_NAME
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import alive, launches, pod_service
from tests.lab.service import ServiceProcess, new_id


@pytest.fixture
def service(account: Account, proxy: FaultProxy) -> Iterator[ServiceProcess]:
    with pod_service(account, proxy.url) as service:
        yield service


@pytest.fixture
def published() -> Iterator[str]:
    """The UID of a pod for which a volume with a disk is published on this node."""
    uid = str(uuid.uuid4())
    path = f"/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/pvc-{secrets.token_hex(4)}/mount"
    directory = DIRECTORY / base64.urlsafe_b64encode(path.encode()).decode()
    directory.mkdir(parents=True)
    info = {"fstype": "ext4", "metadata": {"cloud-volume-path": "vol-0123456789abcdef0"}}
    (directory / "mountInfo.json").write_text(json.dumps(info))
    yield uid
    shutil.rmtree(directory)


def test_a_disk_that_cannot_be_attached_is_refused_by_name_and_concerns_no_other_pod(
    account: Account, proxy: FaultProxy, service: ServiceProcess, published: str
) -> None:
    with_disk, without = new_id(), new_id()
    service.create(with_disk, "db", {POD_NAME: f"k8s_db_default_{published}_0"})
    refused = service.begin_start(with_disk)
    assert refused.status_code == 502
    assert refused.json()["reason"] == "VolumesUnsupported"
    assert published in refused.json()["detail"]
    assert "vol-0123456789abcdef0" in refused.json()["detail"]
    assert launches(account, proxy) == []
    service.create(without, "web", {POD_NAME: f"k8s_web_default_{uuid.uuid4()}_0"})
    service.start_sandbox(without)
    assert list(alive(account).values()) == [without]
