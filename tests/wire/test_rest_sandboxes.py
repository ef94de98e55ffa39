"""The sandbox routes over a real unix socket, a real ledger behind them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from caa.sandbox import SandboxState
from tests.wire.rest_service import PATIENCE_S, USER_DATA, Service, sandbox_body, serving, settings_in

ID = "ab" * 32


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(settings_in(tmp_path)) as running:
        yield running


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def create(http: httpx.Client, sandbox_id: str = ID, pod: str = "shop/web", **annotations: str) -> httpx.Response:
    return http.post("/v1/sandboxes", json=sandbox_body(sandbox_id, pod, **annotations))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hang_up_after(service: Service, request: str, condition: Callable[[], bool]) -> None:
    """Send a request and close the connection without reading as soon as `condition` holds."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(service.socket)
        connection.sendall(f"{request} HTTP/1.1\r\nHost: caa\r\nContent-Length: 0\r\n\r\n".encode())
        wait_until(condition)


def test_a_new_sandbox_is_201_with_its_agent_socket(service: Service, http: httpx.Client) -> None:
    answer = http.post("/v1/sandboxes", json=sandbox_body(ID) | {"network_namespace_path": "/var/run/netns/cni-1"})

    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/sandboxes/{ID}"
    assert answer.json() == {
        "id": ID,
        "state": "created",
        "pod": {"namespace": "shop", "name": "web"},
        "node": "node-1",
        "cluster": "c1",
        "agent_socket_path": f"{service.settings.pods_dir}/{ID}/agent.ttrpc",
        "network_namespace_path": "/var/run/netns/cni-1",
        "failure": None,
        "created_at": "2026-01-31T12:00:01Z",
        "changed_at": "2026-01-31T12:00:01Z",
        "instance": None,
        "attempts": 0,
    }


def test_the_same_sandbox_again_is_200_with_the_same_answer(http: httpx.Client) -> None:
    first = create(http)
    again = create(http)

    assert again.status_code == 200
    assert again.json() == first.json()


def test_a_start_answers_with_the_instance_and_never_with_user_data_or_token(
    service: Service, http: httpx.Client
) -> None:
    create(http)
    answer = http.post(f"/v1/sandboxes/{ID}/start", params={"timeout": 30})

    assert answer.status_code == 200
    assert answer.json()["state"] == "running"
    assert answer.json()["attempts"] == 1
    assert answer.json()["instance"] == {
        "id": "i-1",
        "name": "podvm-web-01234567",
        "type": "m6a.large",
        "zone": "eu-1a",
        "market": "on-demand",
        "address": "10.0.0.7",
        "image": "ami-1",
    }
    assert service.lifecycle.starts == [(ID, 30.0)]
    token = service.ledger.attempts(ID)[0].token
    for path in ("", f"/{ID}", f"/{ID}/events"):
        text = http.get(f"/v1/sandboxes{path}").text
        assert USER_DATA.decode() not in text
        assert token not in text


def test_a_start_waits_600_seconds_unless_told_otherwise(service: Service, http: httpx.Client) -> None:
    create(http)
    http.post(f"/v1/sandboxes/{ID}/start")
    assert service.lifecycle.starts == [(ID, 600.0)]


def test_a_caller_that_hangs_up_during_a_start_cancels_it(service: Service, http: httpx.Client) -> None:
    create(http, **{"test/start": "hang"})
    hang_up_after(service, f"POST /v1/sandboxes/{ID}/start", lambda: bool(service.lifecycle.starts))
    wait_until(lambda: service.lifecycle.gone == [ID])


def test_a_caller_that_hangs_up_during_a_stop_does_not_cancel_it(service: Service, http: httpx.Client) -> None:
    create(http)
    service.lifecycle.stop_gate.clear()
    hang_up_after(service, f"POST /v1/sandboxes/{ID}/stop", lambda: True)
    # A later call on another connection, so that the server has seen the hang-up.
    assert http.get(f"/v1/sandboxes/{ID}").json()["state"] == "created"
    service.lifecycle.stop_gate.set()

    def stopping() -> bool:
        sandbox = service.ledger.sandbox(ID)
        return sandbox is not None and sandbox.state is SandboxState.STOPPING

    wait_until(stopping)


def test_a_closing_server_tells_a_waiting_start_so_and_does_not_cancel_it(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path)) as service, service.client() as http:
        create(http, **{"test/start": "hang"})
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(service.socket)
            connection.sendall(
                f"POST /v1/sandboxes/{ID}/start HTTP/1.1\r\nHost: caa\r\nContent-Length: 0\r\n\r\n".encode()
            )
            wait_until(lambda: bool(service.lifecycle.starts))
            service.rest._servers[0][0].should_exit = True
            answer = b""
            while received := connection.recv(65536):
                answer += received
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"the service is stopping" in answer
            assert service.lifecycle.gone == []


def test_a_stop_answers_with_the_state_and_may_be_repeated(http: httpx.Client) -> None:
    create(http)
    for _ in range(2):
        answer = http.post(f"/v1/sandboxes/{ID}/stop")
        assert (answer.status_code, answer.json()) == (200, {"id": ID, "state": "stopping"})


def test_a_stop_of_an_unknown_sandbox_is_a_success(http: httpx.Client) -> None:
    answer = http.post("/v1/sandboxes/nobody/stop")
    assert (answer.status_code, answer.json()) == (200, {"id": "nobody", "state": "unknown"})


def test_delete_is_202_while_something_is_left_and_204_otherwise(http: httpx.Client) -> None:
    create(http)
    answer = http.delete(f"/v1/sandboxes/{ID}")
    assert (answer.status_code, answer.json()) == (202, {"id": ID, "state": "stopping"})
    gone = http.delete("/v1/sandboxes/nobody")
    assert (gone.status_code, gone.content) == (204, b"")


def test_pages_hold_every_sandbox_once_and_in_order(http: httpx.Client) -> None:
    ids = [f"sandbox-{number}" for number in range(7)]
    for sandbox_id in ids:
        create(http, sandbox_id)

    for limit, pages in ((3, 3), (7, 1), (6, 2), (100, 1)):
        seen: list[str] = []
        cursor: str | None = None
        count = 0
        while count == 0 or cursor:
            query: dict[str, str | int] = {"limit": limit} | ({"cursor": cursor} if cursor else {})
            page = http.get("/v1/sandboxes", params=query).json()
            seen += [sandbox["id"] for sandbox in page["sandboxes"]]
            cursor = page["next_cursor"]
            count += 1
        assert (seen, count) == (ids, pages)


def test_filters_narrow_the_list(http: httpx.Client) -> None:
    create(http, "one", "shop/web")
    create(http, "two", "shop/db")
    create(http, "three", "bank/web", **{"test/node": "node-2"})
    http.post("/v1/sandboxes/two/start")

    def ids(query: str) -> list[str]:
        return [sandbox["id"] for sandbox in http.get(f"/v1/sandboxes?{query}").json()["sandboxes"]]

    assert ids("namespace=shop") == ["one", "two"]
    assert ids("pod=web") == ["one", "three"]
    assert ids("node=node-2") == ["three"]
    assert ids("state=running") == ["two"]
    assert ids("state=running&state=created") == ["one", "two", "three"]
    assert ids("state=stopped") == []


def test_events_come_in_order_and_go_on_from_the_last_one_seen(http: httpx.Client) -> None:
    create(http)
    http.post(f"/v1/sandboxes/{ID}/start")

    first = http.get(f"/v1/sandboxes/{ID}/events", params={"limit": 1}).json()
    second = http.get(f"/v1/sandboxes/{ID}/events", params={"after": first["next_after"]}).json()
    last = http.get(f"/v1/sandboxes/{ID}/events", params={"after": second["next_after"]}).json()

    assert [event["kind"] for event in first["events"]] == ["Created"]
    assert [(event["kind"], event["attempt"]) for event in second["events"]] == [("Running", 1)]
    assert last == {"events": [], "next_after": second["next_after"]}
