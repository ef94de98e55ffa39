"""A service without a pod VM image: it has one built, says how far that is, and uses it as soon as it is there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped,unused-ignore]
import pytest

from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Fault, FaultProxy, Phase, Rule
from tests.clouds.imagelab import make_disk
from tests.clouds.podworld import alive, service_directory, service_environ
from tests.lab.service import READY_SECONDS, ServiceProcess, accepts, new_id


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_disk(tmp_path / "disk.raw")


@pytest.fixture
def upload(proxy: FaultProxy) -> Rule:
    """Held up until it is released, so that there is something to see."""
    return proxy.add(Fault.HOLD, Phase.BEFORE, method="PUT", times=None)


@contextlib.contextmanager
def unready_service(account: Account, proxy: FaultProxy, disk: Path, **keys: str) -> Iterator[ServiceProcess]:
    """A service without an image."""
    own = {"PODVM_AMI_ID": "", "PODVM_IMAGE_URI": str(disk), **keys}
    environ = account.emulator.environ(proxy.url) | service_environ(account, **own)
    with service_directory() as directory:
        made = ServiceProcess(directory, environ)
        made.start()
        try:
            yield made
        finally:
            made.shut_down()


@pytest.fixture
def service(account: Account, proxy: FaultProxy, disk: Path, upload: Rule) -> Iterator[ServiceProcess]:
    with unready_service(account, proxy, disk) as made:
        yield made


def wait_until_it_listens(service: ServiceProcess) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not accepts(service.api_socket):
        assert time.monotonic() < deadline, service.log_tail()
        time.sleep(0.05)


def test_starts_are_put_off_while_the_image_is_built_and_work_without_a_restart_when_it_is_there(
    account: Account, upload: Rule, service: ServiceProcess
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
    upload.release()
    service.wait_ready()
    service.start_sandbox(early)
    assert list(alive(account).values()) == [early]
    with service.rest() as client:
        image = client.get("/v1/image/status").json()["ready"]
        assert [one["image"] for one in client.get("/v1/images").json()["images"]] == [image["image"]]
    assert image["state"] == "ready"
    launched = account.instances()[0]
    assert launched["ImageId"] == image["image"]


def test_without_an_image_one_is_built_once_written_back_and_used_without_a_restart(
    account: Account, proxy: FaultProxy, disk: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "PODVM_AMI_ID").write_text("")
    with unready_service(account, proxy, disk, CAA_CONFIG_DIR=str(keys)) as service:
        service.wait_ready()
        sandbox = new_id()
        service.create(sandbox, "web")
        service.start_sandbox(sandbox)
        (launched,) = account.instances()
        # The service uses what the ledger has; whoever built it writes it back just after that.
        deadline = time.monotonic() + READY_SECONDS
        while (keys / "PODVM_AMI_ID").read_text() != launched["ImageId"]:
            assert time.monotonic() < deadline, (keys / "PODVM_AMI_ID").read_text()
            time.sleep(0.05)
        assert account.emulator.counters()["calls"]["RegisterImage"] == 1


def test_a_key_that_the_build_lacks_is_named_to_starts_and_the_build_begins_when_it_is_there(
    account: Account, proxy: FaultProxy, disk: Path, tmp_path: Path
) -> None:
    session = boto3.session.Session("x", "-", region_name=account.seed.region)
    with contextlib.closing(session.client("s3", endpoint_url=account.emulator.url)) as storage:
        storage.create_bucket(Bucket="images")
    keys = tmp_path / "keys"
    keys.mkdir()
    own = {"CAA_CONFIG_DIR": str(keys), "CAA_AWS_IMAGE_UPLOAD": "s3"}
    with unready_service(account, proxy, disk, **own) as service:
        wait_until_it_listens(service)
        sandbox = new_id()
        service.create(sandbox, "web")
        deadline = time.monotonic() + READY_SECONDS
        while (refused := service.begin_start(sandbox).json())["reason"] != "ImageNotConfigured":
            assert time.monotonic() < deadline, refused
            time.sleep(0.1)
        assert "the pod VM image cannot be built: BUCKET_NAME: is required" in refused["detail"]
        assert not {"ImportSnapshot", "RegisterImage"} & set(account.emulator.counters()["calls"])
        (keys / "BUCKET_NAME").write_text("images")
        service.wait_ready()
        service.start_sandbox(sandbox)


def test_a_failed_image_is_told_with_its_reason_and_built_when_somebody_asks_over_rest(
    account: Account, proxy: FaultProxy, disk: Path
) -> None:
    refusal = b'{"__type": "AccessDeniedException", "Message": "no"}'
    kind = "application/json"
    proxy.add(
        Fault.STATUS,
        Phase.BEFORE,
        method="POST",
        url="/snapshots$",
        times=None,
        status=403,
        reply=refusal,
        content_type=kind,
    )
    with unready_service(account, proxy, disk) as service:
        wait_until_it_listens(service)
        sandbox = new_id()
        service.create(sandbox, "web")
        deadline = time.monotonic() + READY_SECONDS
        while (refused := service.begin_start(sandbox).json())["reason"] != "ImageFailed":
            assert time.monotonic() < deadline, refused
            time.sleep(0.1)
        assert "the credentials lack the right to call StartSnapshot" in refused["detail"]
        assert "caa image retry" in refused["detail"]
        proxy.clear()
        with service.rest() as client:
            assert client.get("/v1/image/status").json()["building"]["state"] == "failed"
            retried = client.post("/v1/image/retry")
            assert retried.status_code == 202, retried.text
            service.wait_ready()
            assert client.post("/v1/image/retry").status_code == 404
        service.start_sandbox(sandbox)


def test_an_incomplete_configuration_is_named_and_nothing_is_built(
    account: Account, proxy: FaultProxy, disk: Path
) -> None:
    with unready_service(account, proxy, disk, AWS_SUBNET_IDS="subnet-missing") as service:
        assert service.process is not None
        assert service.process.wait(READY_SECONDS) == 1
        assert "subnet-missing" in service.log_tail()
    assert "StartSnapshot" not in account.emulator.counters()["calls"]
