"""The real `caa webhook` as the API server calls it, by the shipped configuration."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.kube.apiserver import PATIENCE_SECONDS, KubeApiServer, eventually
from tests.lab.ports import held_port

PLACE = Path(__file__).parents[2] / "docker" / "kubernetes" / "webhook"
SPACE = "peerpods"


@contextlib.contextmanager
def webhook(kube: KubeApiServer) -> Iterator[None]:
    """Runs, and the Service leads to it."""
    port = held_port()
    arguments = ["webhook", "--host", "127.0.0.1", "--port", str(port), "--namespace", SPACE]
    process = subprocess.Popen(
        [sys.executable, "-m", "caa.cli.main", *arguments], env=os.environ | {"KUBECONFIG": str(kube.kubeconfig())}
    )
    try:
        kube.do("service", name="caa-webhook", namespace=SPACE, host="127.0.0.1", port=port)
        eventually(lambda: _connects(port), bool)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.fixture
def api(kube: KubeApiServer) -> Iterator[httpx.Client]:
    kube.do("namespace", name=SPACE)
    (configuration,) = yaml.safe_load_all((PLACE / "admission.yaml").read_text())
    kube.do("add", resource="mutatingwebhookconfigurations", body=configuration)
    with kube.client() as client:
        yield client


def create(api: httpx.Client, name: str, memory: str = "1Gi", runtime_class: str = "kata-remote") -> httpx.Response:
    container = {"name": "main", "image": "i", "resources": {"limits": {"cpu": "2", "memory": memory}}}
    spec: dict[str, Any] = {"containers": [container]}
    if runtime_class:
        spec["runtimeClassName"] = runtime_class
    return api.post("/api/v1/namespaces/default/pods", json={"metadata": {"name": name}, "spec": spec})


def test_a_peer_pod_is_stored_as_the_webhook_made_it_and_no_other_pod_is_asked_about(
    kube: KubeApiServer, api: httpx.Client
) -> None:
    # Nobody answers yet: only pods of the class are refused.
    refused = create(api, "early")
    assert (refused.status_code, refused.json()["reason"]) == (500, "InternalError")
    assert 'failed calling webhook "pods.peerpods.io"' in refused.json()["message"]
    assert create(api, "other", runtime_class="").status_code == 201
    assert create(api, "runc", runtime_class="runc").status_code == 201
    with webhook(kube):
        made = create(api, "web")
        assert made.status_code == 201, made.text
        stored = api.get("/api/v1/namespaces/default/pods/web").json()
        assert stored["metadata"]["annotations"]["io.katacontainers.config.hypervisor.default_vcpus"] == "2"
        resources = stored["spec"]["containers"][0]["resources"]
        assert resources["limits"] == resources["requests"] == {"kata.peerpods.io/vm": "1"}
        wrong = create(api, "wrong", memory="much")
        assert wrong.status_code in (400, 403, 422)
        assert "pods.peerpods.io" in wrong.json()["message"]
        assert "much" in wrong.json()["message"]
        other = api.get("/api/v1/namespaces/default/pods/other").json()
        assert other["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "2", "memory": "1Gi"}}
    names = [one["metadata"]["name"] for one in kube.do("listed", resource="pods")]
    assert names == ["other", "runc", "web"]
