"""The interface describes itself so that a client can be generated: complete, without a dangling reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import caa
from tests.wire.rest_service import serving, settings_in

OTHER_KINDS = {"exportEvents": "application/jsonl", "metrics": "text/plain"}
METHODS = {"get", "put", "post", "delete", "patch", "head", "options"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with serving(settings_in(Path(tmp_path_factory.mktemp("rest")))) as service, service.client() as http:
        assert http.get("/v1/version").json() == {"version": caa.__version__}
        answer = http.get("/openapi.json")
        assert answer.status_code == 200
        described: dict[str, Any] = answer.json()
        return described


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            yield path, item[method]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_it_is_openapi_3_1_of_this_version(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == caa.__version__


def test_every_operation_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert set(names) == {
        "createSandbox",
        "listSandboxes",
        "getSandbox",
        "listSandboxEvents",
        "startSandbox",
        "stopSandbox",
        "deleteSandbox",
        "getSandboxMetadata",
        "explainSizing",
        "audit",
        "fixAudit",
        "exportEvents",
        "metrics",
        "getVersion",
        "getConfigStatus",
        "listImages",
        "getImageStatus",
        "retryImage",
        "live",
        "ready",
        "started",
    }


def test_every_error_is_declared_as_a_problem(document: dict[str, Any]) -> None:
    for _, operation in operations(document):
        errors = {status: answer for status, answer in operation["responses"].items() if not status.startswith("2")}
        assert "default" in errors
        for answer in errors.values():
            schema = answer["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}
            assert list(answer["content"]) == ["application/problem+json"]


def test_every_path_parameter_is_declared(document: dict[str, Any]) -> None:
    for path, operation in operations(document):
        declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert declared == ({"id"} if "{id}" in path else set())


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_every_answer_of_success_has_a_schema_but_the_empty_one(document: dict[str, Any]) -> None:
    for _, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status.startswith("2") and status != "204":
                kind = OTHER_KINDS.get(operation["operationId"], "application/json")
                assert answer["content"][kind]["schema"]
        if "204" in operation["responses"]:
            assert "content" not in operation["responses"]["204"]
