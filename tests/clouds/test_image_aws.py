"""Pod VM images on the emulated AWS: made once, killed anywhere and gone on with, removed with all they brought."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped,unused-ignore]
import pytest

from imagebuilder.publish.upload import SENDERS
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.imagefates import delete_while_built, kill_builder
from tests.clouds.imagelab import ImageLab, block_sums, image_lab, make_disk

DENIED = b'{"__type": "AccessDeniedException", "Message": "not authorized to perform ebs:StartSnapshot"}'


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("disk") / "disk.raw")


@pytest.fixture
def way(account: Account) -> Iterator[FaultProxy]:
    """The way to the emulated AWS."""
    account.emulator.run_clock()
    with FaultProxy(account.emulator.url) as made:
        yield made


@pytest.fixture
def lab(account: Account, way: FaultProxy, disk: Path, tmp_path: Path) -> Iterator[ImageLab]:
    environ = account.emulator.environ(way.url) | {"CLOUD_PROVIDER": "aws"}
    with image_lab(tmp_path, environ, disk) as made:
        yield made


def made(account: Account) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Our images and snapshots, and what the EBS direct APIs got."""
    disks = account.emulator.disks()
    images = {image: name for image, name in disks["images"].items() if name.startswith("podvm-")}
    return images, disks["snapshots"], disks["ebs"]


def assert_one_whole_image(account: Account, disk: Path) -> dict[str, Any]:
    """Exactly one image on exactly one snapshot, which holds the disk; returns what EBS got."""
    images, snapshots, ebs = made(account)
    assert len(images) == 1
    assert list(snapshots.values()) == ["completed"]
    sums = ebs["snapshots"][next(iter(snapshots))]["sums"]
    assert {int(number): base64.b64decode(one) for number, one in sums.items()} == block_sums(disk)
    return ebs


def test_an_image_is_made_of_a_disk_as_a_pod_vm_needs_it(lab: ImageLab, account: Account, disk: Path) -> None:
    said = lab.json("ensure")
    ebs = assert_one_whole_image(account, disk)
    assert (ebs["again"], ebs["blocks"]) == (0, len(block_sums(disk)))
    image = account.ec2.describe_images(ImageIds=[said["image"]])["Images"][0]
    assert (image["Architecture"], image["BootMode"], image["TpmSupport"]) == ("x86_64", "uefi", "v2.0")
    assert (image["ImdsSupport"], image["EnaSupport"], image["VirtualizationType"]) == ("v2.0", True, "hvm")
    tags = {tag["Key"]: tag["Value"] for tag in image["Tags"]}
    assert (tags["peerpods.caa/cluster"], tags["peerpods.caa/image"]) == ("prod", said["digest"])
    assert image["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"]
    assert lab.json("status")["image"]["measurements"] == said["measurements"] == {"disk": said["digest"]}


def test_a_second_ensure_makes_nothing(lab: ImageLab, account: Account) -> None:
    first = lab.json("ensure")
    before = account.emulator.counters()["calls"]
    second = lab.json("ensure")
    assert (second["image"], second["built"]) == (first["image"], False)
    after = account.emulator.counters()["calls"]
    assert {name for name in after if after[name] != before.get(name)} == {"DescribeImages"}


def test_with_an_image_configured_the_cloud_is_not_asked(lab: ImageLab, account: Account) -> None:
    before = account.emulator.counters()["calls"]
    said = lab.json("ensure", PODVM_AMI_ID="ami-0123456789abcdef0")
    assert (said["image"], said["state"]) == ("ami-0123456789abcdef0", "configured")
    assert account.emulator.counters()["calls"] == before


# How many requests an image takes: two looks, a snapshot, its 25 blocks, its end, a look, the image, a look.
STEPS = {"look": 1, "snapshots": 2, "start": 3, "first block": 4, "block": 16, "last block": 28}
STEPS |= {"complete": 29, "completed": 30, "register": 31, "available": 32}


# Each takes some 2 seconds; `make soak` does all of them.
SAMPLE = STEPS if os.environ.get("CAA_SOAK") else ("start", "block", "register")


@pytest.mark.parametrize(("step", "phase"), list(itertools.product(SAMPLE, (Phase.BEFORE, Phase.AFTER))))
def test_killed_at_any_step_the_next_builder_goes_on(
    lab: ImageLab, account: Account, way: FaultProxy, disk: Path, step: str, phase: Phase
) -> None:
    kill_builder(lab, way, phase, at=STEPS[step])
    lab.run("ensure")
    ebs = assert_one_whole_image(account, disk)
    assert ebs["again"] <= SENDERS  # what the dead builder had in flight it could not write down
    assert len(ebs["snapshots"]) == 1
    assert account.emulator.counters()["errors"] == {}
    lab.run("delete")
    assert made(account)[:2] == ({}, {})


def test_a_block_that_was_acknowledged_is_never_sent_again(
    lab: ImageLab, account: Account, way: FaultProxy, tmp_path: Path
) -> None:
    larger = make_disk(tmp_path / "larger.raw", blocks=64, size=80 << 20)
    lab.environ["PODVM_IMAGE_URI"] = str(larger)
    for _ in range(2):
        kill_builder(lab, way, Phase.BEFORE, method="PUT", at=30)
    lab.run("ensure")
    ebs = assert_one_whole_image(account, larger)
    assert ebs["again"] <= 2 * SENDERS
    assert ebs["blocks"] == len(block_sums(larger))


def test_without_the_right_the_reason_is_told_and_nothing_is_left_nor_tried_again(
    lab: ImageLab, account: Account, way: FaultProxy, disk: Path
) -> None:
    refusal = {"status": 403, "reply": DENIED, "content_type": "application/json"}
    rule = way.add(Fault.STATUS, Phase.BEFORE, method="POST", url="/snapshots$", times=None, **refusal)
    said = lab.run("ensure", code=1)
    assert "the credentials lack the right to call StartSnapshot" in said
    assert made(account)[:2] == ({}, {})
    assert "caa image retry" in lab.run("ensure", code=1)
    assert rule.fired == 1
    way.clear()
    assert "built in" in lab.run("retry")
    assert_one_whole_image(account, disk)


def test_an_image_that_somebody_deleted_is_built_again(lab: ImageLab, account: Account, disk: Path) -> None:
    first = lab.json("ensure")["image"]
    account.ec2.deregister_image(ImageId=first)
    second = lab.json("ensure")["image"]
    assert second != first
    assert_one_whole_image(account, disk)


def test_an_image_of_somebody_else_is_never_deleted(lab: ImageLab, account: Account) -> None:
    lab.run("ensure")
    lab.run("delete", PODVM_AMI_ID=account.seed.images["x86_64"])
    assert made(account)[:2] == ({}, {})
    assert set(account.seed.images.values()) <= set(account.emulator.disks()["images"])


def test_a_refresh_switches_and_removes_the_image_before(lab: ImageLab, account: Account, tmp_path: Path) -> None:
    first = lab.json("ensure")["image"]
    assert lab.json("refresh")["image"] == first  # the same disk is the same image
    other = make_disk(tmp_path / "other.raw", seed=2)
    second = lab.json("refresh", PODVM_IMAGE_URI=str(other))["image"]
    assert second != first
    assert_one_whole_image(account, other)
    assert lab.json("ensure")["image"] == second


def test_deleting_while_it_is_built_ends_the_build_and_leaves_nothing(
    lab: ImageLab, account: Account, way: FaultProxy
) -> None:
    delete_while_built(lab, way, method="PUT")
    assert made(account)[:2] == ({}, {})


# By way of S3


@pytest.fixture
def bucket(lab: ImageLab, account: Account) -> Iterator[Any]:
    """The lab's images go by way of a bucket; counts what is left in it."""
    environ = account.emulator.environ()
    session = boto3.session.Session(environ["AWS_ACCESS_KEY_ID"], "-", region_name=account.seed.region)
    client = session.client("s3", endpoint_url=account.emulator.url)
    client.create_bucket(Bucket="images")
    lab.environ |= {"CAA_AWS_IMAGE_UPLOAD": "s3", "BUCKET_NAME": "images"}
    yield (
        lambda: (
            client.list_objects_v2(Bucket="images").get("KeyCount", 0)
            + len(client.list_multipart_uploads(Bucket="images").get("Uploads", []))
        )
    )
    client.close()


IMPORT_STEPS = ("", "Action=ImportSnapshot") + (
    ("partNumber=2", "Action=CreateTags") if os.environ.get("CAA_SOAK") else ()
)


@pytest.mark.parametrize("url_or_body", IMPORT_STEPS)
def test_by_way_of_a_bucket_one_image_is_made_and_nothing_is_left_there(
    lab: ImageLab, account: Account, way: FaultProxy, bucket: Any, url_or_body: str
) -> None:
    if url_or_body:
        where = "url" if url_or_body.startswith("part") else "body"
        kill_builder(lab, way, Phase.AFTER, at=1, **{where: url_or_body})
    lab.run("ensure")
    images, snapshots, _ = made(account)
    assert len(images) == len(snapshots) == 1
    assert bucket() == 0
    lab.run("delete")
    assert made(account)[:2] == ({}, {})


def test_without_a_bucket_the_key_is_named(lab: ImageLab) -> None:
    assert "BUCKET_NAME: is required" in lab.run("ensure", code=1, CAA_AWS_IMAGE_UPLOAD="s3")


# Where the id goes


def test_the_id_is_written_to_the_directory_of_keys_and_cleared_with_the_image(
    lab: ImageLab, account: Account, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "PODVM_AMI_ID").write_text("")
    lab.environ["CAA_CONFIG_DIR"] = str(keys)
    image = lab.json("ensure")["image"]
    assert (keys / "PODVM_AMI_ID").read_text() == (keys / "LATEST_AMI_ID").read_text() == image
    assert lab.json("ensure")["state"] == "configured"
    lab.environ["PODVM_IMAGE_URI"] = str(make_disk(tmp_path / "other.raw", seed=2))
    newer = lab.json("refresh")["image"]
    assert (keys / "PODVM_AMI_ID").read_text() == newer != image
    lab.run("delete")
    assert (keys / "PODVM_AMI_ID").read_text() == ""
    assert made(account)[:2] == ({}, {})


def test_a_cloud_for_which_no_images_are_built_is_passed_over(lab: ImageLab) -> None:
    said = lab.json("ensure", CLOUD_PROVIDER="byom")
    assert (said["state"], said["image"]) == ("unsupported", "")
    assert not (lab.directory / "state").exists()
