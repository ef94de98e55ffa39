"""A service without a pod VM image: it has one built, says how far that is, and uses it as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.imagelab import make_disk
from tests.clouds.podworld import alive, service_directory, service_environ
from tests.lab.service import READY_SECONDS, ServiceProcess, new_id


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "disk.raw")


@pytest.fixture
def slow(proxy: FaultProxy) -> None:
    """Uploads take their time, so that there is something to see."""
    proxy.add(Fault.DELAY, Phase.BEFORE, method="PUT", seconds=2.0, times=None)


@pytest.fixture
def service(account: Account, proxy: FaultProxy, disk: Path, slow: None) -> Iterator[ServiceProcess]:
    environ = account.emulator.environ(proxy.url) | service_environ(account, PODVM_AMI_ID="", PODVM_IMAGE_URI=str(disk))
    with service_directory() as directory:
        made = ServiceProcess(directory, environ)
        made.start()
        try:
            yield made
        finally:
            made.shut_down()


def wait_until_it_listens(service: ServiceProcess) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not service.api_socket.exists():
        assert time.monotonic() < deadline, service.log_tail()
        time.sleep(0.05)


def test_starts_are_put_off_while_the_image_is_built_and_work_without_a_restart_when_it_is_there(
    account: Account, service: ServiceProcess
) -> None:
    wait_until_it_listens(service)
    early = new_id()
    service.create(early, "web")
    refused = service.begin_start(early)
    assert refused.status_code == 503, refused.text
    assert refused.json()["reason"] == "ImageBuilding"
    assert "the pod VM image is being built" in refused.json()["detail"]
    assert "Retry-After" in refused.headers
    with service.rest() as client:
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert any("image" in why for why in ready.json()["reasons"])
        assert client.get("/v1/image/status").json()["ready"] is None
    service.wait_ready()
    service.start_sandbox(early)
    assert list(alive(account).values()) == [early]
    with service.rest() as client:
        image = client.get("/v1/image/status").json()["ready"]
        assert [one["image"] for one in client.get("/v1/images").json()["images"]] == [image["image"]]
    assert image["state"] == "ready"
    launched = account.instances()[0]
    assert launched["ImageId"] == image["image"]
