"""Mutating admission of the API server's stand-in: webhooks are asked before an object that is made is checked.

As the real one: rules, matchConditions, the CA of the configuration and the name of the Service, failurePolicy, JSON
patches, in the order of the configurations' names. Only for objects that are made, and only these conditions:
`has(PATH)` and `PATH == 'text'`, with `&&` between. Not there: validating webhooks, selectors, reinvocation, built-in
plugins.
"""

from __future__ import annotations

import base64
import copy
import http.client
import json
import re
import socket
import ssl
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.kube.kinds import Kind
from tests.kube.patches import operated
from tests.kube.refusal import Refusal

Object = dict[str, Any]
Services = Mapping[str, tuple[str, int]]
"""Where a Service (name.namespace) is reached."""

_HAS = re.compile(r"has\((?P<path>object(\.\w+)+)\)")
_EQUALS = re.compile(r"(?P<path>object(\.\w+)+) == '(?P<text>[^']*)'")


def webhooks(configurations: Iterable[Object], kind: Kind, body: Object) -> Iterator[Object]:
    """Those to be asked about an object that is to be made, in order."""
    for configuration in configurations:
        for webhook in configuration.get("webhooks") or ():
            conditions = webhook.get("matchConditions") or ()
            if any(_covers(rule, kind) for rule in webhook.get("rules") or ()) and all(
                _holds(one["expression"], body) for one in conditions
            ):
                yield webhook


def mutated(webhook: Object, kind: Kind, namespace: str, body: Object, services: Services) -> Object:
    """The object as the webhook has it. Raises Refusal."""
    request = {
        "uid": str(uuid.uuid4()),
        "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "resource": {"group": kind.group, "version": kind.version, "resource": kind.plural},
        "operation": "CREATE",
        "namespace": namespace,
        "name": body["metadata"].get("name", ""),
        "userInfo": {"username": "system:serviceaccount:default:tests"},
        "object": {"apiVersion": kind.api_version, "kind": kind.kind, **body},
        "oldObject": None,
        "dryRun": False,
    }
    review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    try:
        response = _asked(webhook, review, services)["response"]
        assert response["uid"] == request["uid"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, AssertionError) as error:
        if webhook.get("failurePolicy", "Fail") == "Ignore":
            return body
        raise Refusal(500, f'failed calling webhook "{webhook["name"]}": {error}') from error
    if not response["allowed"]:
        status = response.get("status") or {}
        text = f'admission webhook "{webhook["name"]}" denied the request: {status.get("message", "")}'
        raise Refusal(int(status.get("code", 403)), text)
    patch = json.loads(base64.b64decode(response["patch"])) if response.get("patch") else []
    return operated(copy.deepcopy(body), patch)


def _covers(rule: Object, kind: Kind) -> bool:
    wanted = (("operations", "CREATE"), ("apiGroups", kind.group), ("apiVersions", kind.version))
    return all({value, "*"} & set(rule[key]) for key, value in (*wanted, ("resources", kind.plural)))


def _holds(expression: str, body: Object) -> bool:
    for part in expression.split(" && "):
        if has := _HAS.fullmatch(part):
            if _at(has["path"], body) is None:
                return False
        elif equals := _EQUALS.fullmatch(part):
            if _at(equals["path"], body) != equals["text"]:
                return False
        else:
            raise Refusal(500, f"the stand-in does not know the condition {part!r}")
    return True


def _at(path: str, body: Object) -> Any:
    here: Any = body
    for name in path.split(".")[1:]:
        here = here.get(name) if isinstance(here, dict) else None
    return here


def _asked(webhook: Object, review: Object, services: Services) -> Any:
    config = webhook["clientConfig"]
    service = config["service"]
    place = services.get(f"{service['name']}.{service['namespace']}")
    if place is None:
        raise ConnectionRefusedError("the Service has no endpoints")
    context = ssl.create_default_context(cadata=base64.b64decode(config["caBundle"]).decode())
    name, seconds = f"{service['name']}.{service['namespace']}.svc", float(webhook.get("timeoutSeconds", 10))
    with (
        socket.create_connection(place, timeout=seconds) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        connection = http.client.HTTPConnection(name, timeout=seconds)
        connection.sock = tls
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", service.get("path", "/"), json.dumps(review), headers)
        answer = connection.getresponse()
        data = answer.read()
    if answer.status != 200:
        raise ValueError(f"it answered {answer.status}: {data[:200]!r}")
    return json.loads(data)
