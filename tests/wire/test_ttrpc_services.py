"""The two services: deadlines, the code of each refusal, and the small methods no shim calls."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path

import pytest

from caa import errors
from caa.api import hypervisor, podvminfo
from caa.ttrpc.client import Client
from caa.ttrpc.frames import Code, StatusError
from caa.ttrpc.protobuf import VARINT, write_field
from caa.ttrpc.server import Handler
from tests.wire.lifecycle import RecordingLifecycle
from tests.wire.test_ttrpc_server import run
from tests.wire.ttrpc_peer import DEADLINE, peer_of, request, serving, until


def both(lifecycle: RecordingLifecycle) -> dict[str, dict[str, Handler]]:
    return hypervisor.hypervisor_service(lifecycle) | podvminfo.podvminfo_service(lifecycle)


def vm_request(sandbox_id: str) -> bytes:
    return hypervisor.SandboxRequest(id=sandbox_id).encode()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.InvalidInputError("id", "id is empty"), 3, "id is empty"),
        (errors.DeadlineError("too late"), 4, "too late"),
        (errors.NotFoundError("no sandbox x"), 5, "no sandbox x"),
        (errors.ConflictError("x is stopping"), 9, "x is stopping"),
        (errors.UnavailableError("stopping"), 14, "stopping"),
        (errors.StartFailedError("no room", reason="QuotaExceeded"), 2, "QuotaExceeded: no room"),
    ],
)
@pytest.mark.parametrize(("method", "verb"), [("CreateVM", "create"), ("StartVM", "start"), ("StopVM", "stop")])
def test_each_refusal_has_its_code_and_its_sentence(
    method: str, verb: str, error: errors.CallError, code: int, message: str
) -> None:
    async def test() -> None:
        lifecycle = RecordingLifecycle()
        lifecycle.failing[verb] = error
        async with peer_of(both(lifecycle)) as peer:
            reply = await peer.ask(request(1, method, vm_request("x"), service="hypervisor.Hypervisor"))
        assert (reply.code, reply.message) == (code, message)

    run(test())


def test_a_start_without_deadline_has_none() -> None:
    async def test() -> None:
        lifecycle = RecordingLifecycle()
        async with peer_of(both(lifecycle)) as peer:
            await peer.ask(request(1, "StartVM", vm_request("x"), service="hypervisor.Hypervisor"))
        assert lifecycle.asked == [("start", ("x", None))]

    run(test())


def test_a_stop_outlives_its_deadline_and_the_memory_of_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        lifecycle = RecordingLifecycle()
        lifecycle.holding.add("stop")
        lifecycle.failing["stop"] = errors.UnavailableError("the ledger cannot be reached")
        service = both(lifecycle)
        async with peer_of(service) as peer:
            stop = request(1, "StopVM", vm_request("x"), service="hypervisor.Hypervisor", timeout_nano=20_000_000)
            assert (await peer.ask(stop)).code == Code.DEADLINE_EXCEEDED
            assert lifecycle.cancelled == []
            gc.collect()
            lifecycle.go.set()
            await until(lambda: "stop of sandbox x: the ledger cannot be reached" in caplog.text)

    with caplog.at_level(logging.WARNING):
        run(test())


def test_a_start_is_cancelled_at_its_deadline() -> None:
    async def test() -> None:
        lifecycle = RecordingLifecycle()
        lifecycle.holding.add("start")
        async with peer_of(both(lifecycle)) as peer:
            start = request(1, "StartVM", vm_request("x"), service="hypervisor.Hypervisor", timeout_nano=20_000_000)
            assert (await peer.ask(start)).code == Code.DEADLINE_EXCEEDED
        assert lifecycle.cancelled == ["start"]

    run(test())


def test_a_stop_is_served_while_a_start_of_the_same_connection_waits(tmp_path: Path) -> None:
    async def test() -> None:
        lifecycle, path = RecordingLifecycle(), tmp_path / "s"
        lifecycle.holding.add("start")
        async with serving(both(lifecycle), path), await Client.connect(path) as rust_shim:
            start = asyncio.create_task(rust_shim.call("hypervisor.Hypervisor", "StartVM", vm_request("x")))
            await until(lambda: lifecycle.begun == ["start"])
            assert await rust_shim.call("hypervisor.Hypervisor", "StopVM", vm_request("x"), timeout=DEADLINE) == b""
            lifecycle.go.set()
            assert await start == b""

    run(test())


def test_the_version_is_the_one_the_incumbent_gives() -> None:
    async def test() -> None:
        async with peer_of(both(RecordingLifecycle())) as peer:
            payload = hypervisor.VersionMessage(version="9").encode()
            reply = await peer.ask(request(1, "Version", payload, service="hypervisor.Hypervisor"))
        assert reply.payload == b"\x0a\x050.0.0"

    run(test())


@pytest.mark.parametrize("method", ["CreateVM", "StartVM", "StopVM", "Version"])
def test_a_message_of_another_shape_is_refused_by_its_field(method: str) -> None:
    async def test() -> None:
        lifecycle = RecordingLifecycle()
        async with peer_of(both(lifecycle)) as peer:
            reply = await peer.ask(request(1, method, write_field(1, VARINT, 7), service="hypervisor.Hypervisor"))
        assert reply.code == Code.INTERNAL
        field = "version" if method == "Version" else "id"
        assert reply.message == f"ttrpc: error unmarshalling payload: field {field} must be str"
        assert lifecycle.asked == []

    run(test())


@pytest.mark.parametrize("wait", [False, True])
def test_a_pods_vm_is_told_by_its_name(wait: bool) -> None:
    async def test() -> None:
        lifecycle = RecordingLifecycle()
        # name=web, namespace=shop, wait
        payload = b"\x0a\x03web\x12\x04shop" + (b"\x18\x01" if wait else b"")
        async with peer_of(both(lifecycle)) as peer:
            reply = await peer.ask(request(1, "GetInfo", payload, service="podvminfo.PodVMInfo"))
        assert reply.payload == b"\x0a\x05i-web"
        assert lifecycle.asked == [("vm_id", ("web", "shop", wait))]

    run(test())


def test_a_pod_without_vm_is_not_found_in_the_incumbents_words(tmp_path: Path) -> None:
    async def test() -> None:
        lifecycle, path = RecordingLifecycle(), tmp_path / "s"
        lifecycle.failing["vm_id"] = errors.NotFoundError("no such pod")
        async with serving(both(lifecycle), path), await Client.connect(path) as client:
            payload = podvminfo.GetInfoRequest(pod_name="web", pod_namespace="shop").encode()
            with pytest.raises(StatusError) as caught:
                await client.call("podvminfo.PodVMInfo", "GetInfo", payload)
        assert (caught.value.code, str(caught.value)) == (Code.NOT_FOUND, "VM ID for shop:web was not found")

    run(test())


def test_waiting_for_a_vm_ends_at_the_callers_deadline_or_with_its_connection(tmp_path: Path) -> None:
    async def test() -> None:
        lifecycle, path = RecordingLifecycle(), tmp_path / "s"
        lifecycle.holding.add("vm_id")
        payload = podvminfo.GetInfoRequest(pod_name="web", pod_namespace="shop", wait=True).encode()
        async with serving(both(lifecycle), path):
            async with await Client.connect(path) as client:
                with pytest.raises((TimeoutError, StatusError)):
                    await client.call("podvminfo.PodVMInfo", "GetInfo", payload, timeout=0.02)
                waiting = asyncio.create_task(client.call("podvminfo.PodVMInfo", "GetInfo", payload))
                await until(lambda: len(lifecycle.begun) == 2)
            with pytest.raises(ConnectionError):
                await waiting
            await until(lambda: lifecycle.cancelled == ["vm_id", "vm_id"])

    run(test())
