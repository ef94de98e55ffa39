"""A pod's cloud volumes, from the control socket of the real proxy to what the pod VM is asked."""

from __future__ import annotations

import asyncio
import json

import pytest

from caa.agentproxy.messages import CloudVolume
from caa.agentproxy.volumes import CLOUD_VOLUMES, SANDBOX_UID, TARGET_PATH
from caa.ttrpc.client import Client
from caa.ttrpc.frames import Code, StatusError
from tests.wire.agentproxy_guest import PATIENCE, SERVER_NAME, World, world
from tests.wire.test_agentproxy_rewrite import OTHER_UID, UID, CreateContainerRequest, path_of, request

VOLUMES = [CloudVolume(path=path_of("pvc-a"), disk_id="vol-0aaa", fs_type="xfs")]


async def open_with(w: World, uid: str, volumes: list[CloudVolume]) -> str:
    path = str(w.socket_path())
    await w.control.open("sb", path, SERVER_NAME, w.keys.ca, *w.keys.client, pod_uid=uid, volumes=volumes)
    return path


def test_the_pod_vm_is_told_which_disk_each_mount_of_its_pod_is() -> None:
    async def main() -> None:
        async with world() as w:
            path = await open_with(w, UID, VOLUMES)
            assert await open_with(w, UID, VOLUMES) == path  # the same again
            await w.control.connect("sb", ["127.0.0.1"], w.guest.port, PATIENCE)
            client = await Client.connect(path)
            try:
                for uid in (UID, OTHER_UID):
                    call = request({SANDBOX_UID: uid}, mounts=[(path_of("pvc-a"), "/data")])
                    await client.call(call.service, call.method, call.payload, PATIENCE)
            finally:
                await client.close()
            asked = [
                CreateContainerRequest.decode(one.payload).oci
                for connection in w.guest.connections
                for _, one in connection.requests
                if one.method == "CreateContainer"
            ]
            ours, strangers = (spec.annotations for spec in asked if spec is not None)
            disk = {"mount_point": "/data", "fs_type": "xfs", "lun": "0", "disk_id": "vol-0aaa"}
            assert json.loads(ours[CLOUD_VOLUMES]) == {"vol-0": disk}
            assert ours[TARGET_PATH] == path_of("pvc-a")
            assert strangers == {SANDBOX_UID: OTHER_UID}

    asyncio.run(main())


def test_open_refuses_another_pods_volume_and_another_list_for_an_open_sandbox() -> None:
    async def main() -> None:
        async with world() as w:
            for uid in ("", OTHER_UID):
                with pytest.raises(StatusError, match="volumes") as caught:
                    await open_with(w, uid, VOLUMES)
                assert caught.value.code == Code.INVALID_ARGUMENT
            assert await w.control.list() == []
            await open_with(w, UID, VOLUMES)
            with pytest.raises(StatusError, match="close it first") as caught:
                await open_with(w, UID, [])
            assert caught.value.code == Code.ALREADY_EXISTS

    asyncio.run(main())
