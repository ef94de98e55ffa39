"""Pod VM images on the emulated IBM Cloud: imported once, killed anywhere and gone on with, the bucket left empty."""

from __future__ import annotations

import itertools
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.ibm_lab import IbmLab
from tests.clouds.imagefates import delete_while_built, kill_builder
from tests.clouds.imagelab import ImageLab, image_lab, make_disk

BUCKET = "images"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Random data does not compress: four parts of 8 MiB.
    return make_disk(tmp_path_factory.mktemp("disk") / "disk.raw", blocks=60)


@pytest.fixture
def way(ibm: IbmLab) -> Iterator[FaultProxy]:
    ibm.emulator.run_clock()
    trust = ssl.create_default_context(cafile=str(ibm.emulator.ca_file))
    httpx.put(f"{ibm.emulator.object_storage_url}/{BUCKET}", verify=trust, timeout=60).raise_for_status()
    with ibm.emulator.proxy() as made:
        yield made


@pytest.fixture
def lab(ibm: IbmLab, way: FaultProxy, disk: Path, tmp_path: Path) -> Iterator[ImageLab]:
    environ = ibm.emulator.environ(way.url) | {
        "CLOUD_PROVIDER": "ibmcloud",
        "IBMCLOUD_COS_BUCKET": BUCKET,
        "IBMCLOUD_COS_ENDPOINT": f"{way.url}/cos",
        "AWS_CA_BUNDLE": str(ibm.emulator.ca_file),
    }
    with image_lab(tmp_path, environ, disk) as made:
        yield made


def images(ibm: IbmLab) -> list[dict[str, Any]]:
    return [one for one in ibm.emulator.resources("images") if one["name"].startswith("podvm-")]


def assert_one_whole_image(ibm: IbmLab) -> dict[str, Any]:
    """Exactly one image, and nothing in the bucket; returns what object storage got."""
    assert [one["status"] for one in images(ibm)] == ["available"]
    storage = dict(ibm.emulator.counters()["object_storage"])
    assert (storage["objects"], storage["uploads"]) == (0, 0)
    return storage


def test_a_disk_is_imported_and_the_object_goes(lab: ImageLab, ibm: IbmLab) -> None:
    said = lab.json("ensure")
    storage = assert_one_whole_image(ibm)
    assert (storage["parts"], storage["parts_again"]) == (4, 0)
    (image,) = images(ibm)
    assert image["id"] == said["image"]
    assert image["operating_system"]["name"] == "debian-12-amd64"
    assert lab.json("ensure")["built"] is False
    lab.run("delete")
    assert images(ibm) == []


STEPS = {
    "look": ("GET", "/images.*name="),
    "begin": ("POST", "uploads"),
    "part": ("PUT", "partNumber=2"),
    "end": ("POST", "uploadId"),
    "import": ("POST", "/v1/images"),
    "wait": ("GET", "/v1/images/"),
    "clean": ("DELETE", "/cos/"),
}
# Each takes some 2 seconds; `make soak` does all of them.
SAMPLE = STEPS if os.environ.get("CAA_SOAK") else ("part", "import")


@pytest.mark.parametrize(("step", "phase"), list(itertools.product(SAMPLE, (Phase.BEFORE, Phase.AFTER))))
def test_killed_at_any_step_the_next_builder_goes_on(
    lab: ImageLab, ibm: IbmLab, way: FaultProxy, step: str, phase: Phase
) -> None:
    method, url = STEPS[step]
    kill_builder(lab, way, phase, method=method, url=url, at=1)
    lab.run("ensure")
    storage = assert_one_whole_image(ibm)
    assert storage["parts_again"] == 0  # what the storage has is asked of it
    lab.run("delete")
    assert images(ibm) == []


def test_deleting_while_it_is_built_ends_the_build_and_leaves_nothing(
    lab: ImageLab, ibm: IbmLab, way: FaultProxy
) -> None:
    delete_while_built(lab, way, method="PUT", url="partNumber")
    assert images(ibm) == []
    storage = ibm.emulator.counters()["object_storage"]
    assert (storage["objects"], storage["uploads"]) == (0, 0)


def test_without_a_bucket_the_key_is_named_and_nothing_is_made(lab: ImageLab, ibm: IbmLab) -> None:
    said = lab.run("ensure", code=1, IBMCLOUD_COS_BUCKET="")
    assert "IBMCLOUD_COS_BUCKET: is required" in said
    assert images(ibm) == []


@pytest.mark.parametrize(
    ("method", "url", "status", "reply", "says"),
    [
        ("POST", "uploads", 403, b"<Error><Code>AccessDenied</Code></Error>", "lack the right to use the bucket"),
        ("POST", "/v1/images", 403, b'{"errors": [{"code": "not_authorized", "message": "no"}]}', "lack the right"),
    ],
)
def test_without_the_right_the_reason_is_told_and_nothing_is_left(
    lab: ImageLab, ibm: IbmLab, way: FaultProxy, method: str, url: str, status: int, reply: bytes, says: str
) -> None:
    kind = "application/json" if reply.startswith(b"{") else "application/xml"
    way.add(
        Fault.STATUS, Phase.BEFORE, method=method, url=url, times=None, status=status, reply=reply, content_type=kind
    )
    assert says in lab.run("ensure", code=1)
    assert images(ibm) == []
    storage = ibm.emulator.counters()["object_storage"]
    assert (storage["objects"], storage["uploads"]) == (0, 0)
