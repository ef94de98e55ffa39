"""Requests to the API server's stand-in -> what is answered; and what tests may do to it.

As the real one: paths, verbs, discovery, selectors, pages, preconditions, and lists and watches by resourceVersion. A
watch from a version that is forgotten is answered with an ERROR event of code 410, a page with HTTP 410. Not there:
authorisation (but `allow_only`), priority and fairness (but `refuse`), OpenAPI, tables, protobuf, subresources other
than status. The second page of a list is of what there is then, not of the first one's version.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from tests.kube import admission, patches
from tests.kube.history import History
from tests.kube.kinds import DEFINITIONS, Kind
from tests.kube.objects import Objects
from tests.kube.refusal import Refusal, gone
from tests.kube.selectors import selector
from tests.kube.watches import Watch, Watches, number

TOKEN = "token-of-a-service-account"
PEER_POD = Path(__file__).parents[2] / "docker" / "kubernetes" / "node" / "peerpod.yaml"
_PATH = re.compile(
    r"/(api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(/(?P<name>[^/]+))?(/(?P<sub>[a-z]+))?"
)
# A namespace itself, which looks like a place for objects.
_NAMESPACE = re.compile(r"/api/v1/namespaces(/(?P<name>[^/]+))?(/(?P<sub>status|finalize))?")
_VERBS = {"POST": "create", "GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class Answer:
    """What goes back: JSON, or the events of a watch."""

    def __init__(self, code: int, body: Any, headers: dict[str, str] | None = None, watch: Watch | None = None) -> None:
        self.code = code
        self.body = body
        self.headers = headers or {}
        self.watch = watch


class ApiServer:
    """Behind one lock."""

    def __init__(self) -> None:
        self.lock = threading.Condition()  # reentrant
        self.answering = threading.Event()
        self.watches = Watches(self.lock)
        self.objects = Objects()
        self.reset()

    # Control verbs

    def reset(self) -> None:
        """As new: the namespaces `default` and `kube-system`, the definition of PeerPod, and nothing else.

        Versions go on, so that a client of before cannot take the new objects for the old ones.
        """
        with self.lock:
            self.watches.end("", "reset")
        version = self.objects.history.version + 1
        self.objects = Objects(history=History(version, version))
        self.calls: list[dict[str, Any]] = []
        self.refusing: list[dict[str, Any]] = []
        self.before: list[dict[str, Any]] = []
        self.services: dict[str, tuple[str, int]] = {}
        self.allowed: list[dict[str, Any]] | None = None
        self.down = False
        self.answering.set()
        for name in ("default", "kube-system"):
            self.namespace(name)
        self.define(yaml.safe_load(PEER_POD.read_text()))

    def set_down(self, down: bool) -> None:
        """Whether every connection is reset, watches included."""
        self.down = down
        if down:
            self.watches.end("", "reset")

    def set_silent(self, silent: bool) -> None:
        """Whether no call is answered and no watch is told anything; when it ends, those that wait are."""
        if silent:
            self.answering.clear()
        else:
            self.answering.set()

    def refuse(
        self, code: int, resource: str = "", times: int = 1, verb: str = "", retry_after: int | None = None
    ) -> None:
        """Answer the next `times` calls about a resource and with a verb ("" is any) with this code."""
        rule = {"code": code, "resource": resource, "verb": verb, "times": times, "retry_after": retry_after}
        self.refusing.append(rule)

    def refuse_no_more(self) -> None:
        """Whatever `refuse` would still have refused."""
        self.refusing.clear()

    def service(self, name: str, namespace: str, host: str, port: int) -> None:
        """Where a Service is reached, for webhooks."""
        self.services[f"{name}.{namespace}"] = (host, port)

    def meanwhile(self, verb: str, resource: str, change: dict[str, Any]) -> None:
        """Make this `change` just before the next call with that verb about that resource."""
        self.before.append({"verb": verb, "resource": resource, "change": change})

    def allow_only(self, rules: list[dict[str, Any]] | None) -> None:
        """Answer 403 to what these rules of a Role do not allow. None allows everything."""
        self.allowed = rules

    def break_watches(self, resource: str = "", how: str = "reset") -> None:
        """End the watches of a resource ("" is any): `close` as a proxy does it, `reset` as a crash."""
        self.watches.end(resource, how)

    def watching(self, resource: str = "") -> int:
        """How many watches of a resource there are."""
        return self.watches.count(resource)

    def expire(self) -> None:
        """Forget the history: to begin a watch where a client has left off is answered 410. Watches go on."""
        self.objects.history.expire()

    def bookmark(self) -> None:
        """Send a bookmark to every watch that wants them."""
        self.watches.bookmark()

    def namespace(self, name: str) -> None:
        """There is one of that name."""
        kind = self.objects.kinds.find("namespaces")
        if ("", "namespaces", "", name) not in self.objects.stored:
            self.objects.create(kind, "", {"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})

    def define(self, definition: dict[str, Any]) -> None:
        """A CustomResourceDefinition, new or changed; objects that are there stay as they are."""
        kind, name = self.objects.kinds.find(DEFINITIONS), definition["metadata"]["name"]
        if ("apiextensions.k8s.io", DEFINITIONS, "", name) in self.objects.stored:
            self.objects.patch(kind, "", name, lambda old: {**old, "spec": definition["spec"]})
        else:
            self.objects.create(kind, "", definition)

    def without(self, kind: str) -> None:
        """The kind's definition is not installed."""
        found = self.objects.kinds.find(kind)
        self.objects.delete(self.objects.kinds.find(DEFINITIONS), "", found.full)

    def add(self, resource: str, body: dict[str, Any], namespace: str = "") -> Any:
        """An object with the status, and the time of its making, that the test gives it."""
        return self.objects.create(self.objects.kinds.find(resource), namespace, body, trusted=True)

    def change(self, resource: str, name: str, patch: dict[str, Any], namespace: str = "") -> Any:
        """A merge patch by somebody else."""
        kind = self.objects.kinds.find(resource)
        return self.objects.patch(kind, namespace, name, lambda old: patches.merged(old, patch))

    def set_status(self, resource: str, name: str, status: dict[str, Any], namespace: str = "") -> None:
        """The whole status, as its owner writes it."""
        kind = self.objects.kinds.find(resource)
        self.objects.patch(kind, namespace, name, lambda old: {**old, "status": status}, "status")

    def remove(self, resource: str, name: str, namespace: str = "") -> None:
        """As `kubectl delete --wait=false`."""
        self.objects.delete(self.objects.kinds.find(resource), namespace, name)

    def listed(self, resource: str, namespace: str = "") -> Any:
        """All of a resource; nothing for one without definition. Events in the order of their making."""
        try:
            found = self.objects.list(self.objects.kinds.find(resource), namespace)
        except KeyError:
            return []
        return sorted(found, key=lambda one: int(one["metadata"]["resourceVersion"])) if resource == "events" else found

    def called(self) -> Any:
        """Every call since `reset` or `forget_calls`, refused ones included.

        `resource` is as in a rule of a Role ("nodes/status"), `subresource` its second part; `at` is in seconds of
        `time.monotonic()`.
        """
        return self.calls

    def forget_calls(self) -> None:
        """Begin to record anew."""
        self.calls.clear()

    # The API

    def answer(self, method: str, url: str, headers: dict[str, str], data: bytes) -> Answer | None:
        """None while it is down: the connection is to be reset."""
        parts = urlsplit(url)
        if parts.path.startswith("/_control/"):
            with self.lock:
                verb = getattr(self, parts.path.removeprefix("/_control/"))
                result = Answer(200, verb(**(json.loads(data) if data else {})))
                self.lock.notify_all()
                return result
        self.answering.wait()
        query = dict(parse_qsl(parts.query))
        with self.lock:
            if self.down:  # from one moment on, also for whoever has just asked
                return None
            try:
                return self._answer(method, unquote(parts.path), query, headers, data)
            except Refusal as refusal:
                return Answer(refusal.code, refusal.status, refusal.headers)
            finally:
                self.lock.notify_all()

    def events(self, watch: Watch, hung_up: Any) -> Iterator[dict[str, Any]]:
        """What a watch is told."""
        for event in self.watches.events(lambda: self.objects, watch, hung_up):
            self.answering.wait()
            if watch.ended == "reset":
                return
            yield event

    def _answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], data: bytes) -> Answer:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized")
        if path == "/version":
            return Answer(200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
        found = self.objects.kinds.discovery(path)
        if found is not None:
            return Answer(200, found)
        match, group, resource = _NAMESPACE.fullmatch(path), "", "namespaces"
        if match is None:
            match = _PATH.fullmatch(path)
            if match is None:
                raise Refusal(404, f"the server could not find the requested resource: {path}")
            group, resource = match["group"] or "", match["resource"]
        named = match.groupdict()
        namespace, name, sub = named.get("namespace") or "", named["name"] or "", named["sub"] or ""
        verb = _verb(method, name, query)
        # Who lists one object by its name is authorised as for that object.
        only = re.fullmatch(r"metadata\.name==?([^,]+)", query.get("fieldSelector", ""))
        self._record(verb, group, resource, sub, namespace, only[1] if only and not name else name)
        kind = self.objects.kinds.at(group, named.get("version") or "v1", resource)
        if kind is None or (sub and not (sub == "status" and kind.status)) or (namespace and not kind.namespaced):
            raise Refusal(404, "the server could not find the requested resource")
        if kind.namespaced and not namespace and verb not in ("list", "watch"):
            raise Refusal(405, "the server does not allow this method on the requested resource")
        for one in [one for one in self.before if (one["verb"], one["resource"]) == (verb, resource)]:
            self.before.remove(one)
            self.change(**one["change"])
        return self._do(verb, kind, namespace, name, sub, query, headers, data)

    def _record(self, verb: str, group: str, resource: str, sub: str, namespace: str, name: str) -> None:
        full = f"{resource}/{sub}" if sub else resource
        call = {
            "verb": verb,
            "group": group,
            "resource": full,
            "subresource": sub,
            "namespace": namespace,
            "name": name,
        }
        self.calls.append(call | {"at": time.monotonic()})
        for rule in self.refusing:
            if rule["times"] > 0 and rule["resource"] in ("", resource, full) and rule["verb"] in ("", verb):
                rule["times"] -= 1
                text = f"the test refuses {verb} {resource}"
                raise Refusal(rule["code"], text, retry_after=rule["retry_after"])
        if self.allowed is not None and not any(_allows(rule, verb, group, full, name) for rule in self.allowed):
            where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
            text = f'cannot {verb} resource "{full}" in API group "{group}"{where}'
            raise Refusal(403, f'{resource} "{name}" is forbidden: the service account {text}')

    def _do(
        self,
        verb: str,
        kind: Kind,
        namespace: str,
        name: str,
        sub: str,
        query: dict[str, str],
        headers: dict[str, str],
        data: bytes,
    ) -> Answer:
        objects = self.objects
        match verb:
            case "get":
                return Answer(200, objects.get(kind, namespace, name))
            case "list":
                return Answer(200, self._list(kind, namespace, query))
            case "watch":
                return self._watch(kind, namespace, query)
            case "create":
                body = self._admitted(kind, namespace, patches.read("JSON", data))
                return Answer(201, self.objects.create(kind, namespace, body))
            case "update":
                return Answer(200, objects.update(kind, namespace, name, patches.read("JSON", data), sub))
            case "patch":
                return Answer(200, self._patch(kind, namespace, name, sub, query, headers["content-type"], data))
            case "deletecollection":
                chosen = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""), kind.fields)
                found = objects.list(kind, namespace, chosen)
                for one in found:
                    objects.delete(kind, one["metadata"].get("namespace", ""), one["metadata"]["name"])
                return Answer(200, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
        wanted = (json.loads(data) if data else {}).get("preconditions") or {}
        return Answer(
            200, objects.delete(kind, namespace, name, wanted.get("uid", ""), wanted.get("resourceVersion", ""))
        )

    def _admitted(self, kind: Kind, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        configurations = self.objects.list(self.objects.kinds.find("mutatingwebhookconfigurations"), "")
        for webhook in list(admission.webhooks(configurations, kind, body)):
            services = dict(self.services)
            self.lock.release()  # the webhook may ask for something meanwhile
            try:
                body = admission.mutated(webhook, kind, namespace, body, services)
            finally:
                self.lock.acquire()
        return body

    def _patch(
        self, kind: Kind, namespace: str, name: str, sub: str, query: dict[str, str], content_type: str, data: bytes
    ) -> Any:
        patch = patches.read(content_type, data)
        match content_type:
            case patches.MERGE:
                return self.objects.patch(kind, namespace, name, lambda old: patches.merged(old, patch), sub)
            case patches.STRATEGIC if not kind.custom:
                return self.objects.patch(kind, namespace, name, lambda old: patches.merged(old, patch), sub)
            case patches.JSON:
                return self.objects.patch(kind, namespace, name, lambda old: patches.operated(old, patch), sub)
            case patches.APPLY if "fieldManager" in query:
                return self.objects.apply(kind, namespace, name, patch, query["fieldManager"], sub)
        raise Refusal(415, f"the body of the request was in an unknown format: {content_type}")

    def _list(self, kind: Kind, namespace: str, query: dict[str, str]) -> dict[str, Any]:
        chosen = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""), kind.fields)
        version, after = self.objects.history.version, ""
        wanted = number(query.get("resourceVersion", ""))
        if wanted > version:
            raise Refusal(504, f"Too large resource version: {wanted}, current: {version}", retry_after=1)
        if query.get("resourceVersionMatch") == "Exact" and wanted != version:
            raise gone(str(wanted))  # no state but the newest is kept
        if query.get("continue"):
            token = json.loads(base64.b64decode(query["continue"]))
            version, after = int(token["version"]), str(token["after"])
            if version < self.objects.history.oldest:
                raise gone(str(version))
        items = self.objects.list(kind, namespace, chosen)
        items = [one for one in items if _place(one) > after]
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        limit = int(query.get("limit", "0"))
        if limit and len(items) > limit:
            metadata["remainingItemCount"] = len(items) - limit
            items = items[:limit]
            token = {"version": version, "after": _place(items[-1])}
            metadata["continue"] = base64.b64encode(json.dumps(token).encode()).decode()
        return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}

    def _watch(self, kind: Kind, namespace: str, query: dict[str, str]) -> Answer:
        chosen = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""), kind.fields)
        try:
            return Answer(200, None, watch=self.watches.open(self.objects, kind, namespace, chosen, query))
        except Refusal as refusal:
            if refusal.code != 410:
                raise
            # As the real one: the answer is a stream, and the refusal its only event.
            told = {"type": "ERROR", "object": refusal.status}
            return Answer(200, None, watch=Watch(kind, namespace, chosen, 0, False, 0.0, [told], ended="close"))


def _verb(method: str, name: str, query: dict[str, str]) -> str:
    if method == "GET" and query.get("watch") in ("true", "1"):
        return "watch"
    if not name and method in ("GET", "DELETE"):
        return {"GET": "list", "DELETE": "deletecollection"}[method]
    if bool(name) == (method == "POST"):
        raise Refusal(405, "the server does not allow this method on the requested resource")
    return _VERBS[method]


def _allows(rule: dict[str, Any], verb: str, group: str, resource: str, name: str) -> bool:
    def holds(key: str, value: str) -> bool:
        return value in rule.get(key, ()) or "*" in rule.get(key, ())

    named = not rule.get("resourceNames") or name in rule["resourceNames"]
    return named and holds("verbs", verb) and holds("apiGroups", group) and holds("resources", resource)


def _place(body: dict[str, Any]) -> str:
    return f"{body['metadata'].get('namespace', '')}/{body['metadata']['name']}"
