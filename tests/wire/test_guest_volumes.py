"""Cloud volumes in the real forwarder, on real disks (loop devices) in a mount namespace of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caa.guest.securemount import SecureMountRequest, secure_mount
from caa.guest.volumenames import CLOUD_VOLUMES, TARGET_PATH
from caa.ttrpc.frames import Code, StatusError
from caa.ttrpc.server import Call, Server
from tests.wire.test_agentproxy_rewrite import CreateContainerRequest, Mount, Spec
from tests.wire.test_guest_forwarder import PATIENCE, Guest, Process, code

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root and loop devices"
)

# As FORWARDER, in a mount namespace, with the made-up /sys and /dev of the test.
FORWARDER = (
    "import ctypes, subprocess; assert ctypes.CDLL(None).unshare(0x20000) == 0; "
    "subprocess.run(['mount', '--make-rprivate', '/'], check=True); "
    "from caa.guest.forwarder import Forwarder as F; from caa.guest.disks import Disks as D; "
    "from caa.guest.volumes import CloudVolumes as V; "
    "d = Path(a[4]); v = V(d / 'cloud-volumes', D(d / 'dev', d / 'block', patience=5.0), mounted_seconds=2.0); "
    "F(Path(a[1]), Path('/nowhere'), Path(a[2]), ('127.0.0.1', 0), Path(a[3]), 15, v).run()"
)


class VolumeGuest(Guest):
    """A guest whose VM has a system disk, and data disks as they are added."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        for name in ("dev", "block", "block/vda"):
            (directory / name).mkdir()
        self.loops: list[str] = []
        self.forwarder: Process | None = None

    def start_forwarder(self, **environment: str) -> Process:
        self.forwarder = Process(FORWARDER, self.config, self.socket, self.podns, self.directory, **environment)
        self._processes.append(self.forwarder)
        return self.forwarder

    def add_disk(self, name: str, content: bytes = b"") -> str:
        image = self.directory / f"{name}.img"
        image.write_bytes(content)
        os.truncate(image, 16 << 20)
        done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=True)
        self.loops.append(done.stdout.strip())
        (self.directory / "dev" / name).symlink_to(self.loops[-1])
        (self.directory / "block" / name).mkdir()
        return self.loops[-1]

    def mounted(self) -> dict[str, str]:
        """Place below the directory of volumes -> file system type, as the forwarder sees it."""
        assert self.forwarder is not None
        lines = Path(f"/proc/{self.forwarder.child.pid}/mounts").read_text().splitlines()
        fields = (line.split(" ") for line in lines if str(self.directory) in line)
        return {Path(place).name: kind for _, place, kind, *_ in fields}

    def end(self) -> None:
        super().end()
        for loop in self.loops:
            subprocess.run(["losetup", "-d", loop], check=True)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[VolumeGuest]:
    guest = VolumeGuest(tmp_path)
    yield guest
    guest.end()


def container(volumes: object = None, target_path: str = "", *mounts: tuple[str, str], name: str = "c1") -> bytes:
    annotations = {TARGET_PATH: target_path} if target_path else {}
    if volumes is not None:
        annotations[CLOUD_VOLUMES] = volumes if isinstance(volumes, str) else json.dumps(volumes)
    spec = Spec(
        version="1.1.0",
        annotations=annotations,
        mounts=[Mount(source=source, destination=destination, type="bind") for source, destination in mounts],
    )
    return CreateContainerRequest(container_id=name, oci=spec).encode()


def disk(lun: int = 0, **more: str) -> dict[str, Any]:
    return {f"vol-{lun}": {"mount_point": "/data", "lun": str(lun), "disk_id": "x", **more}}


def test_a_blank_disk_becomes_a_mount_of_the_container_and_keeps_what_is_on_it(guest: VolumeGuest) -> None:
    guest.add_disk("vdb")
    guest.start()
    assert guest.forwarder is not None
    worker_path = str(guest.directory / "worker-only")
    first, second, third = (
        container(disk(fs_group="1234"), worker_path, (worker_path, "/data"), name=name) for name in ("c1", "c2", "c3")
    )
    with guest.connect() as link:
        link.call(1, "CreateContainer", first)
        place = guest.directory / "cloud-volumes/vol-0"
        assert guest.mounted() == {"vol-0": "ext4"}
        [seen] = guest.calls("CreateContainer")
        assert str(place) in json.dumps(seen)
        assert not Path(worker_path).exists()
        inside = Path(f"/proc/{guest.forwarder.child.pid}/root{place}")
        assert (inside.stat().st_gid, inside.stat().st_mode & 0o7777) == (1234, 0o2775)
        (inside / "kept").write_text("data")
        link.call(3, "CreateContainer", second)  # a second container of the pod
        assert guest.mounted() == {"vol-0": "ext4"}
        link.call(5, "DestroySandbox")
        assert guest.mounted() == {}
        link.call(7, "CreateContainer", third)
        assert (inside / "kept").read_text() == "data"
        link.call(9, "DestroySandbox")


def test_a_disk_with_something_on_it_is_never_formatted(guest: VolumeGuest) -> None:
    loop = guest.add_disk("vdb")
    subprocess.run(["mkswap", loop], check=True, capture_output=True)
    before = Path(loop).read_bytes()[: 1 << 20]
    guest.start()
    with guest.connect() as link:
        link.send(1, "CreateContainer", container(disk(), "", ("/w", "/data")))
        answer = link.answer(1)
    assert answer.status is not None
    assert answer.status.code == Code.INTERNAL
    assert answer.status.message.startswith("cloud volume vol-0: mount ended with ")
    assert guest.mounted() == {}
    assert Path(loop).read_bytes()[: 1 << 20] == before
    assert guest.record.read_text().count("CreateContainer") == 0


def test_a_container_whose_volumes_are_not_understood_never_reaches_the_agent(guest: VolumeGuest) -> None:
    guest.start()
    with guest.connect() as link:
        link.send(1, "CreateContainer", container("{", "", ("/w", "/data")))
        answer = link.answer(1)
        assert answer.status is not None
        assert answer.status.code == Code.INVALID_ARGUMENT
        assert answer.status.message == f"{CLOUD_VOLUMES}: is not JSON"
        assert answer.payload == b""
        link.call(3, "Check", service="grpc.Health")
    assert guest.record.read_text().count("CreateContainer") == 0


def test_health_is_answered_while_a_disk_is_waited_for(guest: VolumeGuest) -> None:
    guest.start()
    with guest.connect() as link:
        link.send(1, "CreateContainer", container(disk(3), "", ("/w", "/data")))
        for stream_id in range(3, 23, 2):
            link.call(stream_id, "Check", service="grpc.Health")
        assert 1 not in link.answers  # the disk is waited for five seconds
        answer = link.answer(1)
        assert code(answer) == Code.NOT_FOUND
        link.call(25, "Check", service="grpc.Health")


def test_a_path_that_nobody_mounts_is_waited_for_and_named(guest: VolumeGuest) -> None:
    guest.start()
    with guest.connect() as link:
        target = str(guest.directory / "csi")
        link.send(1, "CreateContainer", container(None, f",{target}", (target, "/data")))
        answer = link.answer(1)
        assert answer.status is not None
        assert answer.status.code == Code.DEADLINE_EXCEEDED
        assert repr(target) in answer.status.message
        link.call(3, "CreateContainer", container(None, "/proc", ("/proc", "/data")))  # mounted already


class Hub:
    """A confidential data hub that notes what it is asked, on a real socket."""

    def __init__(self, path: Path, refusal: str) -> None:
        self.asked: list[SecureMountRequest] = []
        self._path, self._refusal = path, refusal
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    async def _mount(self, payload: bytes, call: Call) -> bytes:
        self.asked.append(SecureMountRequest.decode(payload))
        if self._refusal:
            raise StatusError(Code.PERMISSION_DENIED, self._refusal)
        return b""

    async def _serve(self) -> None:
        server = Server({"api.SecureMountService": {"SecureMount": self._mount}})
        await server.listen(self._path, 0o600)
        self._ready.set()
        await self._stop.wait()
        await server.close(0)

    def __enter__(self) -> Hub:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


@pytest.mark.parametrize(("content", "source"), [(b"", "empty"), (b"LUKS\xba\xbe\x00\x02", "encrypted")])
def test_an_encrypted_disk_is_opened_by_the_hub(tmp_path: Path, content: bytes, source: str) -> None:
    device = tmp_path / "disk"
    device.write_bytes(content)
    with Hub(tmp_path / "cdh.sock", "") as hub:
        secure_mount(tmp_path / "cdh.sock", device, Path("/run/x"), "ext4", "default/key/1", "caa-vol-0")
    [asked] = hub.asked
    assert (asked.volume_type, asked.mount_point, asked.flags) == ("block-device", "/run/x", [])
    assert asked.options == {
        "devicePath": str(device),
        "sourceType": source,
        "targetType": "fileSystem",
        "encryptionType": "luks2",
        "filesystemType": "ext4",
        "key": "kbs:///default/key/1",
        "mapperName": "caa-vol-0",
    }


def test_what_the_hub_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    with Hub(tmp_path / "cdh.sock", "no such key"), pytest.raises(StatusError, match="refused: no such key") as caught:
        secure_mount(tmp_path / "cdh.sock", tmp_path / "disk", Path("/run/x"), "ext4", "k", "m")
    assert caught.value.code == Code.PERMISSION_DENIED
