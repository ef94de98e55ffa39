"""The objects that the controller makes: DaemonSets from files, and the RuntimeClass."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from caa.controller.nodes import LABEL
from caa.controller.reading import MANAGED_BY, MANAGER
from caa.controller.world import RUNTIME_CLASS
from providers.base import ConfigError, Problem

Body = dict[str, Any]

SHIPPED = Path(__file__).parent / "manifests"
# What files name the adaptor's image by.
PLACEHOLDER = "caa:latest"
# Of the last state that was written here. A field that a newer version does not set any more is known by it.
APPLIED = "caa.peerpods.io/applied"
# What a worker spends on a pod beside its VM: shim, proxy and tunnel. The field's figures.
_OVERHEAD = {"cpu": "250m", "memory": "120Mi"}


def daemon_sets(directory: Path, namespace: str, image: str) -> dict[str, Body]:
    """The DaemonSets of all YAML files of a directory, by name. Raises ConfigError.

    Each is put into the namespace and onto nodes with our label; containers of the image `caa:latest` get `image`.
    """
    found: dict[str, Body] = {}
    try:
        for file in sorted(directory.glob("*.yaml")):
            for body in yaml.safe_load_all(file.read_text()):
                if not isinstance(body, dict) or body.get("kind") != "DaemonSet":
                    kind = body.get("kind") if isinstance(body, dict) else body
                    raise _wrong(f"{file}: {kind!r} is not allowed: every object must be a DaemonSet")
                found[body["metadata"]["name"]] = _placed(body, namespace, image)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise _wrong(f"{directory} cannot be read: {error}") from error
    if not found:
        raise _wrong(f"{directory} holds no DaemonSet")
    return found


def _wrong(message: str) -> ConfigError:
    return ConfigError([Problem("--manifests", message)])


def _placed(body: Body, namespace: str, image: str) -> Body:
    body = copy.deepcopy(body)
    metadata, spec = body["metadata"], body["spec"]["template"]["spec"]
    metadata["namespace"] = namespace
    metadata.setdefault("labels", {})[MANAGED_BY] = MANAGER
    spec.setdefault("nodeSelector", {})[LABEL] = ""
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        if container["image"] == PLACEHOLDER:
            container["image"] = image
    return body


def runtime_class() -> Body:
    """The RuntimeClass: only for nodes with our label."""
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": RUNTIME_CLASS, "labels": {MANAGED_BY: MANAGER}},
        "handler": RUNTIME_CLASS,
        "overhead": {"podFixed": dict(_OVERHEAD)},
        "scheduling": {"nodeSelector": {LABEL: ""}},
    }


def change(wanted: Body, live: Body, digest: str) -> Body | None:
    """What to write over `live`, guarded by its version; None when it is as it shall be.

    Defaults that the API server adds are no difference: everything that we set is compared, and nothing else.
    """
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get(APPLIED) == digest and _covers(wanted, live):
        return None
    metadata = {
        **live["metadata"],
        "labels": {**(live["metadata"].get("labels") or {}), **wanted["metadata"].get("labels", {})},
        "annotations": {**annotations, APPLIED: digest},
    }
    rest = {key: value for key, value in wanted.items() if key != "metadata"}
    return {**rest, "metadata": metadata}


def _covers(wanted: Any, live: Any) -> bool:
    """Whether `live` has everything that `wanted` has."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and _covers(wanted[key], live[key]) for key in wanted)
    if isinstance(wanted, list):
        same = isinstance(live, list) and len(wanted) == len(live)
        return same and all(_covers(one, other) for one, other in zip(wanted, live, strict=True))
    return bool(wanted == live)
