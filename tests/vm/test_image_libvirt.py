"""Pod VM images on libvirt: a volume of the pool, and nothing else of the pool is ever touched."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from tests.clouds.imagelab import ImageLab, image_lab, make_disk
from tests.clouds.imageworld import World, grow, hanging_qemu_img, mended, small_disk, unchecked_space, world
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


def test_without_the_right_the_reason_is_told_and_nothing_is_left(lab: ImageLab, pool: libvirt.virStoragePool) -> None:
    """libvirt's socket for those who may only look."""
    only_looking = "qemu+unix:///system?socket=/var/run/libvirt/libvirt-sock-ro"
    said = lab.run("ensure", code=1, LIBVIRT_URI=only_looking)
    assert "AccessDenied: libvirt at LIBVIRT_URI=" in said
    assert "refuses this user" in said
    assert volumes(lab, pool) == set()
    assert not list((lab.directory / "state").glob("image*"))


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mmdebstrap") is None, reason="building an image needs root and mmdebstrap"
)
def test_deleting_while_it_is_built_from_nothing_ends_its_tools_and_leaves_nothing(
    lab: ImageLab, pool: libvirt.virStoragePool
) -> None:
    state = lab.directory / "state" / "image"
    builder = lab.begin("ensure", PODVM_IMAGE_URI="")
    deadline = time.monotonic() + 600
    while not list(state.glob(".image-*/root/var/lib/dpkg/status")):  # in the middle of mmdebstrap
        assert builder.process.is_alive(), builder.said
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lab.run("delete")
    assert builder.wait() == 1
    assert "asked for the end" in builder.said
    assert not state.exists()
    deadline = time.monotonic() + 60
    while [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(state).encode() in _content(path)]:
        assert time.monotonic() < deadline  # whoever was killed is gone when it had its turn
        time.sleep(0.05)
    assert volumes(lab, pool) == set()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process ended meanwhile
        return b""


# Without room, or with a tool that hangs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def own_pool(pool: libvirt.virStoragePool, tmp_path: Path) -> Iterator[tuple[Path, libvirt.virStoragePool]]:
    """A pool of this test on a file system of its own, and that."""
    name = f"{PREFIX}{secrets.token_hex(4)}"
    with small_disk(tmp_path / "pool", 300) as place:
        text = f"<pool type='dir'><name>{name}</name><target><path>{place}</path></target></pool>"
        made = pool.connect().storagePoolCreateXML(text)
        yield place, made
        made.destroy()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Room for the disk of 30 MiB, beside what must stay free, and not for the disk twice."""
    with small_disk(tmp_path / "small", 110) as place:
        yield place


@pytest.fixture
def make(
    own_pool: tuple[Path, libvirt.virStoragePool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], World]]:
    """A builder for that pool with its state in a directory."""
    disk = make_disk(tmp_path / "disk.raw", blocks=60)
    environ = {"CLOUD_PROVIDER": "libvirt", "LIBVIRT_URI": URI, "LIBVIRT_POOL": own_pool[1].name()}

    def left() -> object:
        own_pool[1].refresh()
        return own_pool[1].listVolumes()

    with contextlib.ExitStack() as stack:
        yield lambda state: stack.enter_context(world(monkeypatch, state, disk, environ, left))


@needs_root
def test_a_pool_without_room_or_that_may_not_be_written_to_is_told_and_nothing_is_left(
    own_pool: tuple[Path, libvirt.virStoragePool], make: Callable[[Path], World], tmp_path: Path
) -> None:
    made = make(tmp_path / "state")
    grow(own_pool[0], 20)
    made.fails("PoolFull", "has no space left")
    subprocess.run(["mount", "-o", "remount,ro", own_pool[0]], check=True)
    assert made.imaging.retry()
    made.fails("PoolDenied", "libvirt may not write to the storage pool LIBVIRT_POOL=")
    subprocess.run(["mount", "-o", "remount,rw,size=300m", own_pool[0]], check=True)
    made.works()


@needs_root
def test_no_room_for_the_conversion_or_a_tool_that_hangs_is_told_and_nothing_is_left(
    small: Path, make: Callable[[Path], World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(small)
    made.fails("NoSpace", "MiB free; writing")
    assert made.imaging.retry()
    with monkeypatch.context() as patch:
        unchecked_space(patch)
        grow(small, 50)
        made.fails("NoSpace", "the disk is full")
    grow(small, 300)
    assert made.imaging.retry()
    with hanging_qemu_img(monkeypatch, tmp_path / "tools", "-O qcow2", made):
        made.fails("DeadlineExceeded", "the phase 'convert' took longer than")
    mended(monkeypatch)
    made.works()
