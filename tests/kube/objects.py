"""The objects of the API server's stand-in: what a write does to them, and what it refuses.

As the real one: resourceVersion, 404, 409, finalizers and deletionTimestamp, the status subresource, JSON merge patch
(RFC 7386), owners and the garbage collector. Not there: watches, defaults, schemas but for what is checked here, other
kinds of patch, field selectors, pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]  # resource, namespace, name
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


class Refusal(Exception):
    """A Status that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


@dataclass
class Objects:
    """Everything that is stored."""

    stored: dict[Key, Object] = field(default_factory=dict)
    namespaces: set[str] = field(default_factory=set)
    kinds: set[str] = field(default_factory=lambda: {"pods", "events", "nodes", "peerpods"})
    version: int = 0

    def create(self, resource: str, namespace: str, body: Object) -> Object:
        self._known(resource)
        if namespace and namespace not in self.namespaces:
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
        name = str(body["metadata"].get("name", ""))
        _check(resource, namespace, name, body)
        key = (resource, namespace, name)
        if key in self.stored:
            raise Refusal(409, "AlreadyExists", f'{resource} "{name}" already exists')
        body["metadata"] = {"creationTimestamp": "2026-01-01T00:00:00Z", "uid": f"uid-of-{name}"} | body["metadata"]
        return self._store(key, body)

    def get(self, resource: str, namespace: str, name: str) -> Object:
        self._known(resource)
        found = self.stored.get((resource, namespace, name))
        if found is None:
            raise Refusal(404, "NotFound", f'{resource} "{name}" not found')
        return found

    def list(self, resource: str, namespace: str, labels: dict[str, str]) -> list[Object]:
        self._known(resource)
        return [
            one
            for (kind, space, _), one in self.stored.items()
            if kind == resource
            and namespace in ("", space)
            and labels.items() <= (one["metadata"].get("labels") or {}).items()
        ]

    def patch(self, resource: str, namespace: str, name: str, patch: Object, *, status: bool) -> Object:
        old = self.get(resource, namespace, name)
        # Each of both ways leaves the other's part alone.
        patch = {k: v for k, v in patch.items() if (k == "status") == status or k == "metadata"}
        new: Object = merged(old, patch)
        if (
            patch.get("metadata", {}).get("resourceVersion", old["metadata"]["resourceVersion"])
            != (old["metadata"]["resourceVersion"])
        ):
            raise Refusal(409, "Conflict", f"the object {name} has been modified")
        key = (resource, namespace, name)
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            del self.stored[key]
            return new
        return self._store(key, new)

    def delete(self, resource: str, namespace: str, name: str) -> Object:
        found = self.get(resource, namespace, name)
        if found["metadata"].get("finalizers"):
            found["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
            return self._store((resource, namespace, name), found)
        del self.stored[resource, namespace, name]
        uid = found["metadata"]["uid"]
        for kind, space, owned in list(self.stored):
            owners = self.stored[kind, space, owned]["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == uid for owner in owners):
                self.delete(kind, space, owned)
        return found

    def _store(self, key: Key, body: Object) -> Object:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.stored[key] = body
        return body

    def _known(self, resource: str) -> None:
        if resource not in self.kinds:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _check(resource: str, namespace: str, name: str, body: Object) -> None:
    problems = []
    if not _NAME.fullmatch(name) or len(name) > 253:
        problems.append(f"metadata.name: {name!r} must be a lower-case DNS name")
    problems += [
        f"label {value!r}" for value in body["metadata"].get("labels", {}).values() if not _LABEL.fullmatch(value)
    ]
    for owner in body["metadata"].get("ownerReferences", []):
        problems += [
            f"ownerReferences.{key}: required" for key in ("apiVersion", "kind", "name", "uid") if not owner[key]
        ]
    if resource == "events":
        if body["involvedObject"]["namespace"] != namespace:
            problems.append("involvedObject.namespace: does not match event.namespace")
        if len(body["message"]) > 1024:
            problems.append("message: can have at most 1024 characters")
    if problems:
        raise Refusal(422, "Invalid", f'{resource} "{name}" is invalid: {"; ".join(problems)}')
