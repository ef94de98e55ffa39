"""What `kubectl kustomize` makes of our kustomizations, for no kustomize can be had where the tests run.

Only what they use: resources, components, namespace, images and patches by strategic merge. Anything else is refused,
so that nothing is tested as something that it is not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]

_CLUSTER_WIDE = frozenset(
    {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace", "RuntimeClass"}
)
_KINDS = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}
_FIELDS = frozenset({"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"})
# Lists that a strategic merge goes into, by the key of their items; every other list that both have is refused.
_MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
    "ports": "containerPort",
}


def render(directory: Path) -> list[Manifest]:
    """All objects of a kustomization, in order. Raises ValueError for what this does not know."""
    return _apply(directory, [])


def _apply(directory: Path, before: list[Manifest]) -> list[Manifest]:
    spec = yaml.safe_load((directory / "kustomization.yaml").read_text())
    if _KINDS.get(spec["kind"]) != spec["apiVersion"]:
        raise ValueError(f"{directory}: {spec['kind']} {spec['apiVersion']} is not known here")
    if unknown := set(spec) - _FIELDS:
        raise ValueError(f"{directory}: {', '.join(sorted(unknown))}: not known here")
    made = [*before, *_resources(directory, spec.get("resources", ()))]
    for component in spec.get("components", ()):
        made = _apply((directory / component).resolve(), made)
    for patch in spec.get("patches", ()):
        _patch(made, _body(directory, patch))
    for manifest in made:
        _place(manifest, spec.get("namespace", ""))
        _rename_images(manifest, spec.get("images", ()))
    ids = [identity(manifest) for manifest in made]
    if twice := {one for one in ids if ids.count(one) > 1}:
        raise ValueError(f"{directory}: {twice} more than once")
    return made


def identity(manifest: Manifest) -> tuple[str, str, str]:
    """Kind, namespace and name."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def _resources(directory: Path, names: list[str]) -> Iterator[Manifest]:
    for name in names:
        path = (directory / name).resolve()
        if path.is_dir():
            yield from render(path)
            continue
        if not path.is_relative_to(directory.resolve()):
            raise ValueError(f"{directory}: {name} is outside, which kustomize refuses")
        yield from yaml.safe_load_all(path.read_text())


def _body(directory: Path, patch: Manifest) -> Manifest:
    if set(patch) not in ({"path"}, {"patch"}):
        raise ValueError(f"{directory}: a patch has {', '.join(patch)}; known here are path and patch")
    body = yaml.safe_load((directory / patch["path"]).read_text() if "path" in patch else patch["patch"])
    if not isinstance(body, dict):
        raise ValueError(f"{directory}: only strategic merges are known here")
    return body


def _patch(manifests: list[Manifest], patch: Manifest) -> None:
    (target,) = [one for one in manifests if identity(one) == identity(patch)]
    _merge(target, patch, "")


def _merge(target: Manifest, patch: Manifest, place: str) -> None:
    for key, value in patch.items():
        if value is None or key.startswith("$"):
            raise ValueError(f"{place}.{key}: removing is not known here")
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value, f"{place}.{key}")
        elif isinstance(value, list) and key in target:
            _merge_lists(target[key], value, key, f"{place}.{key}")
        else:
            target[key] = copy.deepcopy(value)


def _merge_lists(target: list[Any], patch: list[Any], key: str, place: str) -> None:
    if key not in _MERGE_KEYS:
        raise ValueError(f"{place}: how this list is merged is not known here")
    by = _MERGE_KEYS[key]
    new = []
    for item in patch:
        there = next((one for one in target if one[by] == item[by]), None)
        if there is None:
            new.append(copy.deepcopy(item))
        else:
            _merge(there, item, place)
    target[:0] = new  # kustomize puts them first


def _place(manifest: Manifest, namespace: str) -> None:
    if not namespace:
        return
    if manifest["kind"] not in _CLUSTER_WIDE:
        manifest["metadata"]["namespace"] = namespace
    if manifest["kind"] == "Namespace" and manifest["metadata"]["name"] != namespace:
        raise ValueError(f"kustomize would rename the namespace {manifest['metadata']['name']}")


def _rename_images(manifest: Manifest, images: list[Manifest]) -> None:
    for container in containers(manifest):
        name, _, tag = container["image"].partition(":")
        for image in images:
            if unknown := set(image) - {"name", "newName", "newTag"}:
                raise ValueError(f"images: {', '.join(unknown)}: not known here")
            if image["name"] == name:
                container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def containers(manifest: Manifest) -> list[Manifest]:
    """Of a Deployment or DaemonSet; of others none."""
    spec = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return [*spec.get("initContainers", ()), *spec.get("containers", ())]
