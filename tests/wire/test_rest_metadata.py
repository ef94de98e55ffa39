"""What an operator is shown of a pod's instance metadata."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.rest_service import USER_DATA, Service, sandbox_body, serving, settings_in


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(settings_in(tmp_path)) as running:
        yield running


def started(service: Service) -> None:
    with service.client() as client:
        assert client.post("/v1/sandboxes", json=sandbox_body("sb-1")).status_code == 201
        assert client.post("/v1/sandboxes/sb-1/start").status_code == 200


def test_what_a_pod_sees_is_shown_by_path_and_has_no_user_data(service: Service) -> None:
    started(service)
    with service.client() as client:
        answer = client.get("/v1/sandboxes/sb-1/metadata")
    assert answer.status_code == 200
    seen = answer.json()
    assert (seen["mode"], seen["dialect"], seen["served"]) == ("pod", "aws", False)
    assert seen["answers"]["/latest/meta-data/instance-id"] == "i-1"
    assert seen["answers"]["/latest/meta-data/local-ipv4"] == "10.0.0.7"
    assert seen["answers"]["/latest/meta-data/mac"] == "52:54:00:00:00:07"
    assert USER_DATA.decode() not in answer.text


@pytest.mark.parametrize(("dialect", "path"), [("azure", "/metadata/instance"), ("ibmcloud", "/metadata/v1/instance")])
def test_it_is_shown_as_the_dialect_has_it(tmp_path: Path, dialect: str, path: str) -> None:
    with serving(settings_in(tmp_path, CAA_METADATA_DIALECT=dialect)) as service:
        started(service)
        with service.client() as client:
            seen = client.get("/v1/sandboxes/sb-1/metadata").json()
    assert seen["dialect"] == dialect
    assert "i-1" in str(seen["answers"][path])


def test_nothing_is_shown_where_this_service_tells_nothing(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, CAA_METADATA_MODE="off")) as service:
        started(service)
        with service.client() as client:
            seen = client.get("/v1/sandboxes/sb-1/metadata").json()
    assert (seen["mode"], seen["answers"]) == ("off", {})


def test_a_sandbox_without_an_instance_is_a_conflict_and_an_unknown_one_is_not_found(service: Service) -> None:
    with service.client() as client:
        client.post("/v1/sandboxes", json=sandbox_body("sb-1"))
        assert client.get("/v1/sandboxes/sb-1/metadata").json()["reason"] == "WrongState"
        assert client.get("/v1/sandboxes/sb-2/metadata").status_code == 404
