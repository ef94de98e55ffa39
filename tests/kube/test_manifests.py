"""What is installed for the node's service: valid for the newest versions of Kubernetes, and true to the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from caa.kubernetes.objects import peer_pod
from tests.deploy.kustomize import render
from tests.unit.test_podevents import sandbox
from tests.webhook.test_manifests import VERSIONS

PLACE = Path(__file__).parents[2] / "docker" / "kubernetes" / "node"


def manifests() -> list[dict[str, Any]]:
    """All that the kustomization makes."""
    return render(PLACE)


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests() if manifest["kind"] == kind]
    return found


NODE, CONFIG, PULL_SECRETS = "caa-node", "caa-node-config", "caa-node-pull-secrets"


def rules(*roles: str) -> list[dict[str, Any]]:
    """Of the roles of these names."""
    named = {manifest["metadata"]["name"]: manifest for manifest in manifests() if "rules" in manifest}
    return [rule for role in roles for rule in named[role]["rules"]]


def rights(*roles: str) -> set[tuple[str, str]]:
    """Verb and resource of all that they allow."""
    return {(verb, resource) for rule in rules(*roles) for verb in rule["verbs"] for resource in rule["resources"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_peer_pod_has_the_fields_of_its_definition() -> None:
    definition = of_kind("CustomResourceDefinition")["spec"]
    (version,) = definition["versions"]
    written = peer_pod(sandbox(), "uid", "aws", "i-1")
    assert written["apiVersion"] == f"{definition['group']}/{version['name']}"
    assert written["kind"] == definition["names"]["kind"]
    assert set(written["spec"]) == set(version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])
