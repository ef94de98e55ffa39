"""The webhook's manifests: valid for the newest versions of Kubernetes, and its role is what it calls, no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from caa.webhook.certificates import VALIDITY
from tests.webhook.apiserver import api_server
from tests.webhook.test_certificates import START, current

PLACE = Path(__file__).parents[2] / "docker" / "kubernetes" / "webhook"
SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
VERSIONS = sorted(
    (path.name.removeprefix("v").removesuffix("-local") for path in SCHEMAS.glob("v*-local")),
    key=lambda version: [int(part) for part in version.split(".")],
)[-3:]


def manifests() -> Iterator[dict[str, Any]]:
    """All that the kustomization names; it uses `resources` and nothing else."""
    kustomization = yaml.safe_load((PLACE / "kustomization.yaml").read_text())
    assert set(kustomization) == {"apiVersion", "kind", "resources"}
    for name in kustomization["resources"]:
        yield from yaml.safe_load_all((PLACE / name).read_text())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    kinds = set()
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)
        kinds.add(manifest["kind"])
    assert kinds >= {"Deployment", "MutatingWebhookConfiguration", "Role", "ClusterRole", "PodDisruptionBudget"}


def test_the_role_allows_what_was_called_and_nothing_else() -> None:
    with api_server() as server:
        current(server, START)
        current(server, START + VALIDITY * 0.9)
        called = {(verb, *path.split("/")[-2:]) for verb, path in server.calls}
    made = {call if call[0] != "create" else ("create", call[-1], "") for call in called}
    allowed = {
        (verb, resource, name)
        for manifest in manifests()
        if manifest["kind"] in ("Role", "ClusterRole")
        for rule in manifest["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }
    assert made == allowed


def test_no_pod_of_another_class_depends_on_the_webhook() -> None:
    found = [one["webhooks"] for one in manifests() if one["kind"] == "MutatingWebhookConfiguration"]
    assert [one["matchConditions"][0]["expression"] for webhooks in found for one in webhooks] == [
        "has(object.spec.runtimeClassName) && object.spec.runtimeClassName == 'kata-remote'"
    ]
