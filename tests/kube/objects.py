"""The objects of the API server's stand-in: what a write does to them, and what it refuses.

As the real one: resourceVersion and 409 for who did not see the newest, 409 AlreadyExists, no new version for a write
that changes nothing, generation, the status subresource, finalizers and deletionTimestamp, owners and the garbage
collector, the end of a namespace, schemas of custom resources (`schemas`), the four kinds of patch (`patches`).

Not there: defaults, checks and immutable fields of built-in kinds but for those below; controllers, so a DaemonSet has
no Pods, and a Pod no grace period; foreground and orphan deletion (every deletion is a background one, and its garbage
is collected before the answer); managedFields; conversion between the versions of a custom resource; quotas and
LimitRanges; dry runs. Admission is in `admission`.
"""

from __future__ import annotations

import base64
import binascii
import copy
import re
import secrets
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.kube.history import History, Key, Object
from tests.kube.kinds import DEFINITIONS, Kind, Kinds
from tests.kube.patches import applied
from tests.kube.refusal import Refusal, conflict
from tests.kube.schemas import admitted
from tests.kube.selectors import Selector

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
# What no writer changes.
_SERVER_S = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "generation")
# RBAC names may hold colons and capitals.
_FREE_NAMES = frozenset({"clusterroles", "clusterrolebindings", "roles", "rolebindings"})


@dataclass
class Objects:
    """Everything that is stored."""

    kinds: Kinds = field(default_factory=Kinds)
    history: History = field(default_factory=History)
    stored: dict[Key, Object] = field(default_factory=dict)
    managers: dict[tuple[Key, str], Object] = field(default_factory=dict)
    """What each manager applied last."""

    # Reading

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return _as(kind, self._found(kind, namespace, name))

    def list(self, kind: Kind, namespace: str, chosen: Selector = lambda _body: True) -> list[Object]:
        """In the order of their keys, as etcd has them."""
        return [
            _as(kind, one)
            for (group, plural, space, _), one in sorted(self.stored.items())
            if (group, plural) == (kind.group, kind.plural) and namespace in ("", space) and chosen(one)
        ]

    # Writing

    def create(self, kind: Kind, namespace: str, body: Object, *, trusted: bool = False) -> Object:
        """`trusted` is for tests: the body says when it was made, and its status stays."""
        body = copy.deepcopy(body)
        metadata = body.setdefault("metadata", {})
        if metadata.get("namespace", namespace) != namespace:
            raise Refusal(400, "the namespace of the provided object does not match the namespace sent on the request")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        key = (kind.group, kind.plural, namespace, str(metadata.get("name", "")))
        if metadata.get("resourceVersion"):
            raise Refusal(422, "metadata.resourceVersion: resourceVersion should not be set on objects to be created")
        self._namespace_takes(namespace)
        if key in self.stored:
            raise Refusal(409, f'{kind.full} "{key[3]}" already exists', "AlreadyExists")
        given = {"creationTimestamp": metadata.get("creationTimestamp")} if trusted else {}
        for name in _SERVER_S:
            metadata.pop(name, None)
        body["metadata"] = {
            "name": key[3],
            "uid": str(uuid.uuid4()),
            "creationTimestamp": given.get("creationTimestamp") or now(),
            **({"namespace": namespace} if namespace else {}),
            **({"generation": 1} if kind.generation else {}),
            **metadata,
        }
        # The kubelet makes its Node with a status.
        if kind.status and not trusted and kind.plural != "nodes":
            body.pop("status", None)
        if kind.plural in ("pods", "namespaces") and "status" not in body:
            body["status"] = {"phase": "Pending" if kind.plural == "pods" else "Active"}
        body = self._checked(kind, key, body)
        if kind.plural == DEFINITIONS:
            body["status"] = _established(body)
            self.kinds.define(body)
        self._store(key, None, body)
        self._collect_orphan(key, body)
        return _as(kind, body)

    def update(self, kind: Kind, namespace: str, name: str, body: Object, sub: str = "") -> Object:
        """PUT."""
        if kind.custom and not body.get("metadata", {}).get("resourceVersion"):
            raise Refusal(422, f"{kind.full} {name!r}: metadata.resourceVersion: must be specified for an update")
        return self._write(kind, namespace, name, lambda _old: copy.deepcopy(body), sub)

    def patch(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], Object], sub: str = "") -> Object:
        """PATCH: `change` makes the new state of the old one."""
        return self._write(kind, namespace, name, change, sub)

    def apply(self, kind: Kind, namespace: str, name: str, body: Object, manager: str, sub: str = "") -> Object:
        """PATCH, server side; makes what is not there."""
        key = (kind.group, kind.plural, namespace, name)
        before = self.managers.get((key, manager), {})
        if key in self.stored:
            result = self._write(kind, namespace, name, lambda old: applied(old, before, body), sub)
        else:
            result = self.create(kind, namespace, body)
        self.managers[key, manager] = copy.deepcopy(body)
        return result

    def delete(self, kind: Kind, namespace: str, name: str, uid: str = "", version: str = "") -> Object:
        """`uid` and `version` are preconditions."""
        found = self._found(kind, namespace, name)
        metadata = found["metadata"]
        if uid not in ("", metadata["uid"]) or version not in ("", metadata["resourceVersion"]):
            raise conflict(kind.full, name)
        key = (kind.group, kind.plural, namespace, name)
        if kind.plural == "namespaces":
            return self._end_namespace(key, found)
        if not metadata.get("finalizers"):
            self._remove(key, found)
            return _as(kind, found)
        if not metadata.get("deletionTimestamp"):
            found = self._store(key, found, _marked(found))
        return _as(kind, found)

    # Inside

    def _found(self, kind: Kind, namespace: str, name: str) -> Object:
        found = self.stored.get((kind.group, kind.plural, namespace, name))
        if found is None:
            raise Refusal(404, f'{kind.full} "{name}" not found')
        return found

    def _write(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], Object], sub: str) -> Object:
        old = self._found(kind, namespace, name)
        key = (kind.group, kind.plural, namespace, name)
        new = change(_as(kind, old))
        metadata = new.setdefault("metadata", {})
        if metadata.get("name", name) != name:
            raise Refusal(400, "the name of the object does not match the name on the URL")
        if metadata.get("resourceVersion", "") not in ("", old["metadata"]["resourceVersion"]):
            raise conflict(kind.full, name)
        if metadata.get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise conflict(kind.full, name)
        kept = {key: old["metadata"][key] for key in (*_SERVER_S, "resourceVersion") if key in old["metadata"]}
        new["metadata"] = {k: v for k, v in metadata.items() if k not in kept and k not in _SERVER_S} | kept
        new = _separated(kind, old, new, sub)
        if kept.get("deletionTimestamp"):
            added = set(new["metadata"].get("finalizers") or ()) - set(old["metadata"].get("finalizers") or ())
            if added:
                text = f"no new finalizers can be added if the object is being deleted, found {sorted(added)}"
                raise Refusal(422, f"metadata.finalizers: Forbidden: {text}")
        new = self._checked(kind, key, new)
        if kind.generation and _spec(kind, new) != _spec(kind, old):
            new["metadata"]["generation"] = old["metadata"]["generation"] + 1
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            self._remove(key, old, new)
            return _as(kind, new)
        if new == old:
            return _as(kind, old)
        if kind.plural == DEFINITIONS:
            self.kinds.define(new)
        return _as(kind, self._store(key, old, new))

    def _store(self, key: Key, old: Object | None, new: Object) -> Object:
        self.history.add(key, old, new)
        self.stored[key] = new
        return new

    def _checked(self, kind: Kind, key: Key, body: Object) -> Object:
        problems = list(_problems(kind, key, body))
        if kind.schema is not None:
            body, wrong = admitted(body, kind.schema)
            problems += wrong
        if kind.plural == "secrets" and not problems:
            text = body.pop("stringData", None) or {}
            encoded = {name: base64.b64encode(value.encode()).decode() for name, value in text.items()}
            if encoded or "data" in body:
                body["data"] = {**(body.get("data") or {}), **encoded}
            body.setdefault("type", "Opaque")
        if problems:
            raise Refusal(422, f'{kind.full} "{key[3]}" is invalid: {"; ".join(problems)}')
        return {name: value for name, value in body.items() if name not in ("apiVersion", "kind")}

    # What follows from a removal

    def _remove(self, key: Key, old: Object, last: Object | None = None) -> None:
        del self.stored[key]
        self.history.add(key, last if last is not None else old, None)
        self.managers = {known: value for known, value in self.managers.items() if known[0] != key}
        if key[1] == DEFINITIONS:
            self._undefine(old)
        self._collect(old["metadata"]["uid"])
        space = self.stored.get(("", "namespaces", "", key[2])) if key[2] else None
        if space is not None and space["metadata"].get("deletionTimestamp") and not self._inside(key[2]):
            self._remove(("", "namespaces", "", key[2]), space)

    def _collect(self, uid: str) -> None:
        for key, body in list(self.stored.items()):
            owners = body["metadata"].get("ownerReferences") or []
            if key not in self.stored or not any(owner["uid"] == uid for owner in owners):
                continue
            left = [owner for owner in owners if owner["uid"] != uid and self._exists(owner["uid"])]
            if left:
                new = copy.deepcopy(body)
                new["metadata"]["ownerReferences"] = left
                self._store(key, body, new)
            else:
                self._delete(key)

    def _collect_orphan(self, key: Key, body: Object) -> None:
        """Who is made for an owner that is gone already goes, too."""
        owners = body["metadata"].get("ownerReferences") or []
        if owners and not any(self._exists(owner["uid"]) for owner in owners):
            self._delete(key)

    def _exists(self, uid: str) -> bool:
        return any(one["metadata"]["uid"] == uid for one in self.stored.values())

    def _delete(self, key: Key) -> None:
        body = self.stored[key]
        if not body["metadata"].get("finalizers"):
            self._remove(key, body)
        elif not body["metadata"].get("deletionTimestamp"):
            self._store(key, body, _marked(body))

    def _undefine(self, definition: Object) -> None:
        """The objects of a kind go with its definition, finalizers or not."""
        group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
        for key in [one for one in self.stored if one[:2] == (group, plural)]:
            self._remove(key, self.stored[key])
        self.kinds.forget(definition)

    # Namespaces

    def _namespace_takes(self, namespace: str) -> None:
        if not namespace:
            return
        found = self.stored.get(("", "namespaces", "", namespace))
        if found is None:
            raise Refusal(404, f'namespaces "{namespace}" not found')
        if found["metadata"].get("deletionTimestamp"):
            raise Refusal(403, f"unable to create new content in namespace {namespace}: it is being terminated")

    def _inside(self, namespace: str) -> Iterable[Key]:
        return [key for key in self.stored if key[2] == namespace]

    def _end_namespace(self, key: Key, found: Object) -> Object:
        if not found["metadata"].get("deletionTimestamp"):
            new = _marked(found)
            new["status"] = {"phase": "Terminating"}
            self._store(key, found, new)
            for inner in list(self._inside(key[3])):
                if inner in self.stored:
                    self._delete(inner)
        if key in self.stored and not self._inside(key[3]):
            self._remove(key, self.stored[key])
        return found


def now() -> str:
    """As metav1.Time is written."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _as(kind: Kind, body: Object) -> Object:
    return {"apiVersion": kind.api_version, "kind": kind.kind, **copy.deepcopy(body)}


def _marked(body: Object) -> Object:
    new = copy.deepcopy(body)
    new["metadata"]["deletionTimestamp"] = now()
    new["metadata"]["deletionGracePeriodSeconds"] = 0
    if "generation" in new["metadata"]:
        new["metadata"]["generation"] += 1
    return new


def _separated(kind: Kind, old: Object, new: Object, sub: str) -> Object:
    """Each of both ways leaves the other's part alone."""
    if sub == "status":
        metadata = old["metadata"] if kind.custom else new["metadata"]
        result = {**copy.deepcopy(old), "metadata": copy.deepcopy(metadata)}
        result.pop("status", None)
        return result | ({"status": new["status"]} if "status" in new else {})
    if kind.status:
        new.pop("status", None)
        return new | ({"status": copy.deepcopy(old["status"])} if "status" in old else {})
    return new


def _spec(kind: Kind, body: Object) -> Object:
    left = {"apiVersion", "kind", "metadata"} | ({"status"} if kind.status else set())
    return {key: value for key, value in body.items() if key not in left}


def _established(definition: Object) -> Object:
    names = definition["spec"]["names"]
    at = {"lastTransitionTime": now(), "message": "", "status": "True"}
    conditions = [{**at, "type": "NamesAccepted", "reason": "NoConflicts"}]
    conditions.append({**at, "type": "Established", "reason": "InitialNamesAccepted"})
    stored = [version["name"] for version in definition["spec"]["versions"] if version["storage"]]
    return {"acceptedNames": names, "conditions": conditions, "storedVersions": stored}


def _problems(kind: Kind, key: Key, body: Object) -> Iterable[str]:
    name, metadata = key[3], body["metadata"]
    if kind.plural not in _FREE_NAMES and (not _NAME.fullmatch(name) or len(name) > 253):
        yield f"metadata.name: {name!r} must be a lower-case DNS name"
    for value in (metadata.get("labels") or {}).values():
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            yield f"label {value!r}"
    if not all(isinstance(value, str) for value in (metadata.get("annotations") or {}).values()):
        yield "metadata.annotations: must be strings"
    for owner in metadata.get("ownerReferences") or ():
        yield from (
            f"ownerReferences.{part}: required" for part in ("apiVersion", "kind", "name", "uid") if not owner[part]
        )
    if kind.plural == "events":
        yield from _event_problems(body, key[2])
    if kind.plural in ("configmaps", "secrets"):
        yield from _data_problems(kind.plural, body.get("data") or {})


def _event_problems(body: Object, namespace: str) -> Iterable[str]:
    involved = body["involvedObject"].get("namespace", "")
    # Of a Node or another object without namespace, they are in `default`.
    if (involved or "default") != namespace:
        yield "involvedObject.namespace: does not match event.namespace"
    if len(body.get("message", "")) > 1024:
        yield "message: can have at most 1024 characters"


def _data_problems(plural: str, data: Object) -> Iterable[str]:
    for name, value in data.items():
        if not _DATA_KEY.fullmatch(name):
            yield f"data[{name}]: a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
        if not isinstance(value, str):
            yield f"data[{name}]: must be a string"
        elif plural == "secrets":
            try:
                base64.b64decode(value, validate=True)
            except binascii.Error:
                yield f"data[{name}]: must be base64"
