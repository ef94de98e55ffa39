"""A real libvirt for tests of its provider, with a pool of their own. No guest needs to boot: the disk is empty."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from providers.base import LaunchRequest, OwnerScope
from providers.libvirt import connection
from providers.libvirt.images import upload_base_volume
from providers.libvirt.provider import LibvirtProvider
from providers.libvirt.settings import LibvirtKeys
from tests.vm.libvirt_launch_child import request
from tests.vm.libvirt_relay import Cut

LAB = Path(__file__).parents[1] / "lab" / "host.sh"
CLUSTER = f"caa-test-{os.getpid()}"
SCOPE = OwnerScope(CLUSTER, "node-1")
BASE = "caa-test-base.qcow2"
_numbers = itertools.count(1)

needs_libvirt = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("libvirtd"), reason="needs root and libvirt-daemon-system"
)
# Which messages of a call are lost, one after the other: all take a minute for a launch.
EVERY = {Cut.REPLY: 1, Cut.REQUEST: 1} if os.environ.get("CAA_SOAK") else {Cut.REPLY: 3, Cut.REQUEST: 5}


class LibvirtHost:
    """A pool of our own on the real libvirt, and a look at it that does not go through the provider."""

    def __init__(self, conn: libvirt.virConnect, pool: libvirt.virStoragePool, directory: Path) -> None:
        self.conn, self.pool, self.directory = conn, pool, directory
        self.environ = {
            "LIBVIRT_URI": "qemu:///system",
            "LIBVIRT_POOL": pool.name(),
            "LIBVIRT_VOL_NAME": BASE,
            "LIBVIRT_EFI_FIRMWARE": "",  # a BIOS without boot disk stops quietly; UEFI would keep a core busy
            "LIBVIRT_ROOT_DISK_SIZE": 1,
        }

    def keys(self, **changed: object) -> LibvirtKeys:
        return LibvirtKeys.model_validate(self.environ | changed)

    def new(self, **changed: str | bytes) -> LaunchRequest:
        number = next(_numbers)
        return request(f"{CLUSTER}-{number}", f"token-{os.getpid()}-{number}", **changed)  # type: ignore[arg-type]

    def domains(self) -> list[str]:
        return sorted(d.name() for d in self.conn.listAllDomains() if d.name().startswith(f"{CLUSTER}-"))

    def volumes(self) -> list[str]:
        return sorted(set(self.pool.listVolumes()) - {BASE})

    def files(self) -> list[str]:
        return sorted(set(os.listdir(self.directory)) - {BASE})


def qcow2(path: Path, size: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), size], check=True)
    return path


def has_virtualization() -> bool:
    flags = Path("/proc/cpuinfo").read_text().split()
    return Path("/dev/kvm").exists() and ("vmx" in flags or "svm" in flags)


def end(provider: LibvirtProvider, instance_id: str) -> None:
    """Terminate what must be there."""
    assert provider.terminate([instance_id]) == {}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibvirtHost]:
    subprocess.run([str(LAB), "up"], check=True, capture_output=True)
    # Not under pytest's directory: QEMU's own user must be able to go there.
    directory = Path(f"/var/lib/libvirt/{CLUSTER}")
    directory.mkdir(mode=0o711)
    connection._start_event_loop()
    conn = libvirt.open("qemu:///system")
    pool = conn.storagePoolDefineXML(
        f"<pool type='dir'><name>{CLUSTER}</name><target><path>{directory}</path></target></pool>"
    )
    pool.create()
    host = LibvirtHost(conn, pool, directory)
    upload_base_volume(host.keys(), qcow2(tmp_path_factory.mktemp("base") / "b.qcow2", "2G"))
    yield host
    for domain in conn.listAllDomains():
        if domain.name().startswith(f"{CLUSTER}-"):
            if domain.isActive():
                domain.destroy()
            domain.undefine()
    pool.destroy()
    pool.undefine()
    conn.close()
    shutil.rmtree(directory)


@pytest.fixture
def provider(host: LibvirtHost) -> Iterator[LibvirtProvider]:
    provider = LibvirtProvider(host.keys())
    yield provider
    for instance in provider.instances(SCOPE):
        end(provider, instance.id)
    provider.close()
    assert host.domains() == []
    assert host.volumes() == []
    assert host.files() == []
