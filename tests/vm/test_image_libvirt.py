"""Pod VM images on libvirt: a volume of the pool, and nothing else of the pool is ever touched."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.clouds.imagelab import ImageLab, image_lab, make_disk
from tests.lab.image import POOL, URI

HOST = Path(__file__).parents[1] / "lab" / "host.sh"

PREFIX = "podvm-test-"


@pytest.fixture(scope="module")
def pool() -> Iterator[libvirt.virStoragePool]:
    subprocess.run([str(HOST), "up"], check=True)
    connection = libvirt.open(URI)
    yield connection.storagePoolLookupByName(POOL)
    connection.close()


@pytest.fixture
def lab(tmp_path: Path, pool: libvirt.virStoragePool) -> Iterator[ImageLab]:
    cluster = f"test-{secrets.token_hex(4)}"
    environ = {"CLOUD_PROVIDER": "libvirt", "LIBVIRT_URI": URI, "LIBVIRT_POOL": POOL, "CAA_CLUSTER_ID": cluster}
    environ["LIBVIRT_VOL_NAME"] = f"{PREFIX}{cluster}.qcow2"
    with image_lab(tmp_path, environ, make_disk(tmp_path / "disk.raw")) as made:
        made.environ |= environ
        yield made
    for volume in pool.listAllVolumes():
        if cluster in volume.name():
            volume.delete()


def volumes(lab: ImageLab, pool: libvirt.virStoragePool) -> set[str]:
    """Those of this test; others come and go."""
    names = {volume.name() for volume in pool.listAllVolumes()}
    return {name for name in names if lab.environ["CAA_CLUSTER_ID"] in name}


def test_an_image_is_a_volume_under_the_configured_name_and_goes_alone(
    lab: ImageLab, pool: libvirt.virStoragePool
) -> None:
    name = lab.environ["LIBVIRT_VOL_NAME"]
    assert lab.json("ensure")["image"] == name
    assert volumes(lab, pool) == {name}
    assert lab.json("ensure")["built"] is False
    lab.run("delete")
    assert name not in volumes(lab, pool)
    assert pool.isActive()


def test_a_volume_of_a_user_is_used_and_never_deleted(lab: ImageLab, pool: libvirt.virStoragePool) -> None:
    name = lab.environ["LIBVIRT_VOL_NAME"]
    text = f"<volume><name>{name}</name><capacity>1048576</capacity><target><format type='qcow2'/></target></volume>"
    pool.createXML(text)
    assert lab.json("ensure")["built"] is False
    lab.run("delete")
    assert name in volumes(lab, pool)


def test_a_builder_that_is_killed_leaves_what_the_next_one_finishes(
    lab: ImageLab, pool: libvirt.virStoragePool
) -> None:
    name = lab.environ["LIBVIRT_VOL_NAME"]
    builder = lab.begin("ensure")
    while name not in volumes(lab, pool) and builder.process.is_alive():
        pass
    builder.kill()
    builder.wait()
    lab.run("ensure")
    assert volumes(lab, pool) == {name}
    assert lab.json("ensure")["built"] is False
    lab.run("delete")
    assert volumes(lab, pool) == set()
