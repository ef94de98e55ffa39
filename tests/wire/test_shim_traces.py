"""What a real, unmodified Kata shim sent, sent again over a real unix socket to the real services.

`traces/shim_calls.json` holds the calls of containerd-shim-kata-v2 3.30.0, one list a situation: what it asked, with
which deadline and metadata, how long its message was, and whether it hung up before the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caa.api.hypervisor import SERVICE, CreateVMRequest, CreateVMResponse, SandboxRequest, hypervisor_service
from caa.errors import StartFailedError, UnavailableError
from caa.sandbox import CreateRequest, Door
from caa.ttrpc.frames import Code
from tests.wire.lifecycle import RecordingLifecycle
from tests.wire.test_ttrpc_server import run
from tests.wire.ttrpc_peer import Peer, request, serving, until

TRACES: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "traces" / "shim_calls.json").read_text())


def payload_of(call: dict[str, Any]) -> bytes:
    if call["method"] != "CreateVM":
        return SandboxRequest(id=call["sandbox"]).encode()
    return CreateVMRequest(
        id=call["sandbox"], annotations=call["annotations"], network_namespace_path=call["netns"]
    ).encode()


def frame_of(call: dict[str, Any]) -> bytes:
    return request(
        call["stream"],
        call["method"],
        payload_of(call),
        service=SERVICE,
        timeout_nano=int(call["timeout_seconds"] * 1e9),
        metadata=list(call["metadata"].items()),
    )


def expected_of(call: dict[str, Any]) -> tuple[str, object]:
    """What the lifecycle must be asked."""
    if call["method"] == "CreateVM":
        return "create", CreateRequest(call["sandbox"], call["annotations"], call["netns"], Door.TTRPC)
    if call["method"] == "StartVM":
        return "start", (call["sandbox"], call["timeout_seconds"])
    return "stop", call["sandbox"]


@pytest.mark.parametrize("name", sorted(TRACES))
def test_each_recorded_call_reaches_the_lifecycle_unchanged(name: str, tmp_path: Path) -> None:
    async def test() -> None:
        lifecycle, path = RecordingLifecycle(), tmp_path / "hypervisor.sock"
        async with serving(hypervisor_service(lifecycle), path):
            for call in TRACES[name]:
                assert len(payload_of(call)) == call["payload_bytes"]  # our message is the one the shim sent
                peer = await Peer.connect(path)  # the Go shim opens a connection for each call
                if call.get("caller_hung_up"):
                    lifecycle.holding.add(verb := expected_of(call)[0])
                    await peer.send(frame_of(call))
                    await until(lambda verb=verb: lifecycle.begun[-1:] == [verb])  # type: ignore[misc]
                    await peer.hang_up()
                    await until(lambda verb=verb: lifecycle.cancelled == [verb])  # type: ignore[misc]
                    continue
                reply = await peer.ask(frame_of(call))
                await peer.hang_up()
                assert (reply.stream_id, reply.code) == (1, Code.OK)
                answer = CreateVMResponse.decode(reply.payload)
                created = call["method"] == "CreateVM"
                assert answer.agent_socket_path == (
                    f"/run/peerpod/pods/{call['sandbox']}/agent.ttrpc" if created else ""
                )
        assert lifecycle.asked == [expected_of(call) for call in TRACES[name]]

    run(test())


def test_the_traces_hold_every_method_and_both_ways_to_give_up() -> None:
    calls = [call for trace in TRACES.values() for call in trace]
    assert {call["method"] for call in calls} == {"CreateVM", "StartVM", "StopVM"}
    assert {call["method"] for call in calls if call.get("caller_hung_up")} == {"CreateVM", "StartVM"}


def test_a_failed_start_shows_reason_and_sentence_and_the_stop_that_follows_is_served(tmp_path: Path) -> None:
    async def test() -> None:
        lifecycle, path = RecordingLifecycle(), tmp_path / "hypervisor.sock"
        lifecycle.failing["start"] = StartFailedError("No m5.large is left in zone a.", reason="InsufficientCapacity")
        async with serving(hypervisor_service(lifecycle), path):
            replies = []
            for call in TRACES["startvm-error"]:
                peer = await Peer.connect(path)
                replies.append(await peer.ask(frame_of(call)))
                await peer.hang_up()
        assert [reply.code for reply in replies] == [Code.OK, Code.UNKNOWN, Code.OK]
        assert replies[1].message == "InsufficientCapacity: No m5.large is left in zone a."
        assert replies[1].payload == b""  # a Go client decodes the payload before it looks at the status

    run(test())


def test_a_refused_create_is_all_the_shim_hears(tmp_path: Path) -> None:
    async def test() -> None:
        lifecycle, path = RecordingLifecycle(), tmp_path / "hypervisor.sock"
        lifecycle.failing["create"] = UnavailableError("the ledger cannot be reached")
        async with serving(hypervisor_service(lifecycle), path):
            peer = await Peer.connect(path)
            reply = await peer.ask(frame_of(TRACES["createvm-error"][0]))
            await peer.hang_up()
        assert (reply.code, reply.message) == (Code.UNAVAILABLE, "the ledger cannot be reached")

    run(test())


def test_a_stop_goes_on_when_its_caller_hangs_up_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        lifecycle, path = RecordingLifecycle(), tmp_path / "hypervisor.sock"
        lifecycle.holding.add("stop")
        async with serving(hypervisor_service(lifecycle), path):
            peer = await Peer.connect(path)
            await peer.send(frame_of(TRACES["pod-life"][-1]))
            await peer.hang_up()
            await until(lambda: lifecycle.begun == ["stop"])
            lifecycle.go.set()
            await until(lambda: lifecycle.finished == ["stop"])
        assert lifecycle.cancelled == []

    run(test())
