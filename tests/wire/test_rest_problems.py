"""Every error is a problem document, and says nothing it must not say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.wire.rest_service import NAME, NAMESPACE, Service, sandbox_body, serving, settings_in


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(settings_in(tmp_path_factory.mktemp("rest"))) as running:
        yield running


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def problem(answer: httpx.Response, status: int, kind: str, reason: str) -> dict[str, Any]:
    """The document, after what holds for all of them."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:caa:problem:{kind}"
    assert document["status"] == status
    assert document["reason"] == reason
    assert document["title"]
    assert document["detail"]
    return document


def started(http: httpx.Client, sandbox_id: str, ending: str) -> httpx.Response:
    http.post("/v1/sandboxes", json=sandbox_body(sandbox_id, **{"test/start": ending})).raise_for_status()
    return http.post(f"/v1/sandboxes/{sandbox_id}/start")


def test_an_unknown_sandbox_is_404_on_every_route_that_needs_one(http: httpx.Client) -> None:
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/start")):
        answer = http.request(method, f"/v1/sandboxes/nobody{path}")
        assert "nobody" in problem(answer, 404, "sandbox-not-found", "SandboxNotFound")["detail"]


def test_an_unknown_path_is_404(http: httpx.Client) -> None:
    assert "/v2/pods" in problem(http.get("/v2/pods"), 404, "not-found", "NotFound")["detail"]


def test_a_wrong_method_is_405_and_says_what_is_allowed(http: httpx.Client) -> None:
    answer = http.put("/v1/sandboxes/x/start")
    problem(answer, 405, "method-not-allowed", "MethodNotAllowed")
    assert answer.headers["allow"] == "POST"


def test_what_the_lifecycle_finds_wrong_is_400_with_the_field(http: httpx.Client) -> None:
    answer = http.post("/v1/sandboxes", json={"id": "x", "annotations": {NAMESPACE: "shop"}})
    assert problem(answer, 400, "invalid-input", "InvalidInput")["field"] == NAME


def test_a_wrong_state_is_409(http: httpx.Client) -> None:
    http.post("/v1/sandboxes", json=sandbox_body("ended"))
    http.post("/v1/sandboxes/ended/stop")
    assert "stopping" in problem(http.post("/v1/sandboxes/ended/start"), 409, "wrong-state", "WrongState")["detail"]


def test_a_failed_start_is_502_with_the_clouds_reason(http: httpx.Client) -> None:
    problem(started(http, "f", "failed"), 502, "start-failed", "InsufficientInstanceCapacity")


def test_a_passed_deadline_is_504(http: httpx.Client) -> None:
    problem(started(http, "d", "deadline"), 504, "deadline-exceeded", "DeadlineExceeded")


def test_any_other_refusal_is_422_with_its_reason(http: httpx.Client) -> None:
    problem(started(http, "r", "refused"), 422, "refused", "NoInstanceType")


def test_a_defect_is_500_and_tells_nothing_of_it(http: httpx.Client) -> None:
    answer = started(http, "x", "defect")
    problem(answer, 500, "internal", "Internal")
    assert "secret-in-a-traceback" not in answer.text


def test_a_ledger_out_of_reach_is_503_and_may_be_tried_again(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with serving(settings) as service, service.client() as http:
        service.ledger.close()
        for file in tmp_path.glob("ledger.db*"):
            file.rename(file.with_name(file.name + ".away"))
        answer = http.get("/v1/sandboxes")
        problem(answer, 503, "unavailable", "LedgerUnavailable")
        assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/sandboxes?limit=0", "limit", "0"),
        ("/v1/sandboxes?limit=many", "limit", "many"),
        ("/v1/sandboxes?state=asleep", "state.0", "asleep"),
        ("/v1/sandboxes/x/events?after=-1", "after", "-1"),
        ("/v1/sandboxes/..%2Fetc", "id", None),
        ("/v1/sandboxes/.hidden", "id", ".hidden"),
    ],
)
def test_wrong_input_names_field_value_and_what_is_allowed(
    http: httpx.Client, path: str, field: str, value: str | None
) -> None:
    answer = http.get(path)
    if value is None:  # a path with a slash in it is no sandbox's path at all
        problem(answer, 404, "not-found", "NotFound")
        return
    document = problem(answer, 422, "invalid-request", "InvalidRequest")
    assert (document["field"], document["value"]) == (field, value)
    assert document["allowed"]
    assert value in document["detail"]


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "1e9", "soon"])
def test_a_start_takes_only_a_sensible_timeout(http: httpx.Client, timeout: str) -> None:
    answer = http.post("/v1/sandboxes/x/start", params={"timeout": timeout})
    document = problem(answer, 422, "invalid-request", "InvalidRequest")
    assert (document["field"], document["value"]) == ("timeout", timeout)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "../../etc"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": "x\n"}, "id"),
        ({"id": 7}, "id"),
        ({"annotations": {"key": 1}}, "annotations.key"),
        ({"network_namespace_path": "run/netns"}, "network_namespace_path"),
        ({"networkNamespacePath": "/run/netns"}, "networkNamespacePath"),
    ],
)
def test_a_new_sandbox_is_checked_field_by_field(http: httpx.Client, change: dict[str, object], field: str) -> None:
    answer = http.post("/v1/sandboxes", json=sandbox_body("x") | change)
    assert problem(answer, 422, "invalid-request", "InvalidRequest")["field"] == field


def test_a_long_wrong_value_is_cut_short(http: httpx.Client) -> None:
    answer = http.post("/v1/sandboxes", json=sandbox_body("x") | {"id": "/" * 100_000})
    assert len(answer.content) < 2000


def test_all_mistakes_are_told_at_once(http: httpx.Client) -> None:
    detail = problem(http.post("/v1/sandboxes", json={"id": "/"}), 422, "invalid-request", "InvalidRequest")["detail"]
    assert "id: '/'" in detail
    assert "annotations: required" in detail


def test_a_body_that_is_not_json_is_400(http: httpx.Client) -> None:
    answer = http.post("/v1/sandboxes", content=b"{", headers={"Content-Type": "application/json"})
    problem(answer, 400, "malformed-json", "MalformedJson")


def test_a_body_without_its_content_type_is_told_which_one(http: httpx.Client) -> None:
    answer = http.post("/v1/sandboxes", content=json.dumps(sandbox_body("x")).encode())
    document = problem(answer, 422, "invalid-request", "InvalidRequest")
    assert "application/json" in document["allowed"]


def test_a_cursor_of_somebody_elses_is_400(http: httpx.Client) -> None:
    for cursor in ("zz", "e30", "bnVsbA", "%00", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwieCJd"):
        answer = http.get(f"/v1/sandboxes?cursor={cursor}")
        assert problem(answer, 400, "invalid-input", "InvalidInput")["field"] == "cursor"


def test_health_tells_why_not(service: Service, http: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/startupz"):
        assert (http.get(path).status_code, http.get(path).json()) == (200, {"status": "ok"})
    service.health.alive, service.health.begun = False, False
    service.health.unready = ["the ledger is locked", "the proxy is away"]
    try:
        problem(http.get("/livez"), 503, "not-live", "NotLive")
        problem(http.get("/startupz"), 503, "not-started", "NotStarted")
        document = problem(http.get("/readyz"), 503, "not-ready", "NotReady")
        assert document["reasons"] == ["the ledger is locked", "the proxy is away"]
    finally:
        service.health.alive, service.health.begun, service.health.unready = True, True, []
