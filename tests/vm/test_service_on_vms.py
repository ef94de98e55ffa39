"""The service through both doors, with real VMs whose agents answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import stat
import time
from pathlib import Path

import pytest

from caa.api.hypervisor import SandboxRequest
from caa.ttrpc.client import Client, call_once
from caa.ttrpc.frames import StatusError
from tests.lab.agent import AgentCaller
from tests.lab.leftovers import domains, leftovers
from tests.lab.service import SERVICE, ServiceProcess, new_id, pod_annotations

CLUSTER = "test-service-on-vms"
RESTARTS = 10
# For what the service does within a few seconds on a machine that does nothing else.
SECONDS = 90


@pytest.fixture(scope="module")
def running(service: ServiceProcess) -> tuple[str, str]:
    """A sandbox that was started by twenty calls at once: its id and its agent socket."""
    sandbox_id = new_id()
    path = service.create_vm(sandbox_id, "test-many")
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        over_rest = [pool.submit(service.start_sandbox, sandbox_id) for _ in range(10)]
        over_ttrpc = [pool.submit(service.start_vm, sandbox_id) for _ in range(10)]
        answers = [call.result() for call in over_rest]
        assert [call.result() for call in over_ttrpc] == [b""] * 10
    assert answers == [answers[0]] * 10
    assert answers[0]["state"] == "running"
    return sandbox_id, path


def test_twenty_starts_at_once_over_both_doors_make_one_vm_and_get_equal_answers(
    service: ServiceProcess, running: tuple[str, str]
) -> None:
    row = service.sandbox(running[0])
    assert row["attempts"] == 1
    assert domains(CLUSTER) == [row["instance"]["name"]]
    assert [e["kind"] for e in service.events(running[0])].count("LaunchAccepted") == 1


def test_the_agent_socket_speaks_to_the_agent_and_is_for_root_only(
    service: ServiceProcess, running: tuple[str, str]
) -> None:
    async def check() -> int:
        caller = await AgentCaller.connect(running[1])
        try:
            return await caller.check()
        finally:
            await caller.close()

    assert asyncio.run(check()) == 1
    assert Path(running[1]).stat().st_mode & 0o777 == 0o600


def test_a_start_of_a_running_sandbox_answers_at_once(service: ServiceProcess, running: tuple[str, str]) -> None:
    assert min(seconds_of_a_start(service, running[0]) for _ in range(5)) < 2


def seconds_of_a_start(service: ServiceProcess, sandbox_id: str) -> float:
    begun = time.monotonic()
    assert service.start_vm(sandbox_id) == b""
    return time.monotonic() - begun


def test_an_agent_client_sees_no_error_across_ten_kills_of_the_service(
    service: ServiceProcess, running: tuple[str, str]
) -> None:
    async def calls_across_restarts() -> tuple[int, int]:
        caller = await AgentCaller.connect(running[1])
        waiting = await caller.run_container("kept")
        caller.call_every(0.1)
        for _ in range(RESTARTS):
            await asyncio.to_thread(service.kill)
            service.start()
            await asyncio.to_thread(service.wait_ready)
        counted = await caller.stop_calling()
        assert await waiting.finish() == 0, "the call under way since before the first kill was lost"
        await caller.close()
        return counted

    calls, errors = asyncio.run(calls_across_restarts())
    assert errors == 0
    assert calls >= 10 * RESTARTS / 2
    row = service.sandbox(running[0])
    assert (row["state"], row["attempts"]) == ("running", 1)
    assert len(domains(CLUSTER)) == 1


def test_a_stop_over_either_door_twice_removes_everything(service: ServiceProcess, running: tuple[str, str]) -> None:
    service.stop_vm(running[0])
    service.stop_sandbox(running[0])
    service.wait_for_state(running[0], {"stopped"}, SECONDS)
    service.stop_vm(running[0])
    assert leftovers(service) == []


def test_a_stop_of_an_unknown_sandbox_succeeds_over_both_doors(service: ServiceProcess) -> None:
    assert service.stop_vm(new_id()) == b""
    assert service.stop_sandbox(new_id())["state"] == "unknown"


def wait_for_vm(service: ServiceProcess, sandbox_id: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not service.sandbox(sandbox_id)["instance"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_shim_that_hangs_up_during_start_loses_its_vm(service: ServiceProcess) -> None:
    sandbox_id = new_id()
    service.create_vm(sandbox_id, "test-gone")

    async def hang_up() -> None:
        client = await Client.connect(str(service.hypervisor_socket))
        payload = SandboxRequest(id=sandbox_id).encode()
        start = asyncio.create_task(client.call(SERVICE, "StartVM", payload, 600))
        await asyncio.to_thread(wait_for_vm, service, sandbox_id)
        start.cancel()
        await client.close()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await start

    asyncio.run(hang_up())
    row = service.wait_for_state(sandbox_id, {"failed"}, SECONDS)
    assert row["failure"]["reason"] == "CallerGone"
    assert leftovers(service) == []


def test_a_rest_caller_that_hangs_up_during_start_loses_its_vm(service: ServiceProcess) -> None:
    sandbox_id = new_id()
    service.create(sandbox_id, "test-gone-rest")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(service.api_socket))
        connection.sendall(
            f"POST /v1/sandboxes/{sandbox_id}/start HTTP/1.1\r\nHost: caa\r\nContent-Length: 0\r\n\r\n".encode()
        )
        wait_for_vm(service, sandbox_id)
    row = service.wait_for_state(sandbox_id, {"failed"}, SECONDS)
    assert row["failure"]["reason"] == "CallerGone"
    assert leftovers(service) == []


def test_a_stop_during_start_ends_the_start_and_leaves_nothing(service: ServiceProcess) -> None:
    sandbox_id = new_id()
    service.create(sandbox_id, "test-stop")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        start = pool.submit(service.begin_start, sandbox_id)
        wait_for_vm(service, sandbox_id)
        service.stop_vm(sandbox_id)
        answer = start.result(SECONDS)
    assert answer.status_code == 409
    assert answer.json()["type"].startswith("urn:caa:problem:")
    service.wait_for_state(sandbox_id, {"stopped"}, SECONDS)
    assert leftovers(service) == []


def test_a_deadline_that_passes_during_start_is_told_and_leaves_nothing(service: ServiceProcess) -> None:
    sandbox_id = new_id()
    service.create_vm(sandbox_id, "test-late")

    async def start() -> None:
        await call_once(str(service.hypervisor_socket), SERVICE, "StartVM", SandboxRequest(id=sandbox_id).encode(), 2)

    with pytest.raises((StatusError, TimeoutError)):
        asyncio.run(start())
    service.wait_for_state(sandbox_id, {"failed"}, SECONDS)
    assert leftovers(service) == []


def test_a_newer_sandbox_of_the_same_pod_ends_the_older_one_at_once(service: ServiceProcess) -> None:
    older, newer = new_id(), new_id()
    service.create(older, "test-twice")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(service.begin_start, older)
        wait_for_vm(service, older)
        service.create(newer, "test-twice")
        second = pool.submit(service.begin_start, newer)
        assert service.wait_for_state(older, {"failed"}, SECONDS)["failure"]["reason"] == "Superseded"
        assert first.result(SECONDS).status_code == 409
        wait_for_vm(service, newer)
        assert domains(CLUSTER) == [service.sandbox(newer)["instance"]["name"]]
        service.stop_sandbox(newer)
        second.result(SECONDS)
    service.wait_for_state(newer, {"stopped"}, SECONDS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"io.kubernetes.cri.sandbox-name": ""}, "io.kubernetes.cri.sandbox-name"),
        ({"io.katacontainers.config.hypervisor.default_vcpus": "many"}, "default_vcpus"),
        ({"io.katacontainers.config.hypervisor.default_memory": "2Gi"}, "default_memory"),
    ],
)
def test_a_bad_annotation_is_refused_by_name(service: ServiceProcess, change: dict[str, str], named: str) -> None:
    sandbox_id = new_id()
    with service.rest() as client:
        body = {"id": sandbox_id, "annotations": pod_annotations("p") | change}
        answer = client.post("/v1/sandboxes", json=body)
        assert answer.status_code == 400
        assert named in answer.json()["detail"]
        assert client.get(f"/v1/sandboxes/{sandbox_id}").status_code == 404


def test_a_network_namespace_that_does_not_exist_is_refused_with_its_path(service: ServiceProcess) -> None:
    body = {"id": new_id(), "annotations": pod_annotations("p"), "network_namespace_path": "/run/netns/none"}
    with service.rest() as client:
        answer = client.post("/v1/sandboxes", json=body)
    assert answer.status_code == 400
    assert "/run/netns/none" in answer.json()["detail"]


def test_an_image_that_does_not_exist_fails_the_start_at_once_and_leaves_nothing(service: ServiceProcess) -> None:
    sandbox_id = new_id()
    service.create(sandbox_id, "test-image", {"io.katacontainers.config.hypervisor.image": "no-such-image"})
    answer = service.begin_start(sandbox_id)
    assert answer.status_code == 502
    assert "no-such-image" in answer.json()["detail"]
    service.wait_for_state(sandbox_id, {"failed"}, SECONDS)
    assert leftovers(service) == []


def test_no_key_or_token_stands_in_the_log_or_in_a_readable_file(service: ServiceProcess) -> None:
    assert "PRIVATE KEY" not in service.log_file.read_text()
    for path in service.state_dir.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a database's files come and go
            mode = path.stat().st_mode
            assert stat.S_ISDIR(mode) or mode & 0o077 == 0, f"{path} can be read by others"
