"""Pod VM images on the emulated Azure: uploaded once, killed anywhere and gone on with, other galleries left alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.publish.upload import SENDERS
from tests.clouds.azure_image_lab import Cloud, Server, emptied, server
from tests.clouds.faultproxy import Fault, Phase
from tests.clouds.imagefates import delete_while_built, kill_builder
from tests.clouds.imagelab import ImageLab, image_lab, make_disk

GALLERY = "galleries/podvmgallery_prod"
DEFINITION = f"{GALLERY}/images/podvm-image-x64-cvm"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("azure")) as running:
        yield running


@pytest.fixture
def cloud(emulator: Server) -> Iterator[Cloud]:
    with emptied(emulator) as made:
        yield made


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("disk") / "disk.raw", size=(96 << 20) + 1536, blocks=60)


@pytest.fixture
def lab(cloud: Cloud, disk: Path, tmp_path: Path) -> Iterator[ImageLab]:
    with image_lab(tmp_path, cloud.environ(), disk) as made:
        yield made


def assert_one_whole_image(cloud: Cloud) -> dict[str, Any]:
    """Gallery, definition and one version, and no disk any more."""
    resources = cloud.resources()
    assert sorted(resources)[:2] == [GALLERY, DEFINITION]
    (version,) = (path for path in resources if "/versions/" in path)
    assert set(resources) == {GALLERY, DEFINITION, version}
    return dict(resources[version])


def test_a_disk_becomes_a_version_that_confidential_vms_boot_and_no_storage_account_is_needed(
    lab: ImageLab, cloud: Cloud
) -> None:
    said = lab.json("ensure")
    version = assert_one_whole_image(cloud)
    assert said["image"].lower().endswith(next(path for path in cloud.resources() if "/versions/" in path))
    assert version["tags"]["peerpods.caa/image"] == said["digest"]
    definition = cloud.resources()[DEFINITION]
    assert definition["features"] == [{"name": "SecurityType", "value": "ConfidentialVmSupported"}]
    assert (definition["hyperVGeneration"], definition["architecture"]) == ("V2", "x64")
    state = cloud.state()
    assert state["again"] == 0
    assert state["bytes"] < 72 << 20  # of 97: empty pages are passed over
    assert lab.json("ensure")["built"] is False
    lab.run("delete")
    assert cloud.resources() == {}


STEPS = {
    "look": ("GET", "/versions/"),
    "gallery": ("PUT", r"/galleries/\w+\?"),
    "definition": ("PUT", r"/images/[\w-]+\?"),
    "disk": ("PUT", "/disks/"),
    "access": ("POST", "/beginGetAccess"),
    "pages": ("PUT", "/blobs/"),
    "end of access": ("POST", "/endGetAccess"),
    "version": ("PUT", "/versions/"),
    "clean": ("DELETE", "/disks/"),
}
# Each takes some 3 seconds; `make soak` does all of them.
SAMPLE = STEPS if os.environ.get("CAA_SOAK") else ("pages", "version")


@pytest.mark.parametrize(("step", "phase"), list(itertools.product(SAMPLE, (Phase.BEFORE, Phase.AFTER))))
def test_killed_at_any_step_the_next_builder_goes_on(lab: ImageLab, cloud: Cloud, step: str, phase: Phase) -> None:
    method, url = STEPS[step]
    kill_builder(lab, cloud.way, phase, method=method, url=url, at=5 if step == "pages" else 1)
    lab.run("ensure")
    assert_one_whole_image(cloud)
    assert cloud.state()["again"] <= SENDERS
    lab.run("delete")
    assert cloud.resources() == {}


def test_deleting_while_it_is_built_ends_the_build_and_leaves_nothing(lab: ImageLab, cloud: Cloud) -> None:
    delete_while_built(lab, cloud.way, method="PUT", url="/blobs/")
    assert cloud.resources() == {}


def test_a_definition_that_cannot_hold_the_image_is_named_and_left_alone(lab: ImageLab, cloud: Cloud) -> None:
    cloud.put("galleries/Ours", {})
    cloud.put("galleries/Ours/images/plain", {"hyperVGeneration": "V1", "architecture": "x64"})
    said = lab.run("ensure", code=1, IMAGE_GALLERY_NAME="Ours", IMAGE_DEFINITION_NAME="plain")
    assert "SecurityType Standard where ConfidentialVmSupported is needed, hyperVGeneration V1 where V2" in said
    assert set(cloud.resources()) == {"galleries/ours", "galleries/ours/images/plain"}


def test_a_gallery_of_somebody_else_is_used_and_stays(lab: ImageLab, cloud: Cloud) -> None:
    cloud.put("galleries/Ours", {})
    lab.run("ensure", IMAGE_GALLERY_NAME="Ours")
    assert len(cloud.resources()) == 3
    lab.run("delete", IMAGE_GALLERY_NAME="Ours")
    assert set(cloud.resources()) == {"galleries/ours"}


@pytest.mark.parametrize(("method", "url"), [("PUT", "/disks/"), ("PUT", "/versions/")])
def test_without_the_right_the_reason_is_told_and_nothing_is_left(
    lab: ImageLab, cloud: Cloud, method: str, url: str
) -> None:
    refusal = b'{"error": {"code": "AuthorizationFailed", "message": "no right to write"}}'
    kind = "application/json"
    cloud.way.add(
        Fault.STATUS, Phase.BEFORE, method=method, url=url, times=None, status=403, reply=refusal, content_type=kind
    )
    assert "the credentials lack a right" in lab.run("ensure", code=1)
    assert cloud.resources() == {}


def test_what_the_configuration_lacks_is_named_and_nothing_is_asked(lab: ImageLab, cloud: Cloud) -> None:
    said = lab.run("ensure", code=1, AZURE_REGION="")
    assert "AZURE_REGION: is required" in said
    assert cloud.state()["calls"] == {}
